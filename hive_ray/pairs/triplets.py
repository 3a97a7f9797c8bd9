"""Human-written triplets (caption, instruction, edited caption) to fine-tune an instruction writer (InstructPix2Pix).

a JSONL file of triplets -> examples to fine-tune a language model on
"""

import json
from collections import defaultdict
from dataclasses import dataclass

from hive_ray.console import warn
from hive_ray.files.text_files import SAMPLE_CHARS, JsonLine, LineCount, read_json_lines
from hive_ray.pairs.instructions import PROMPT_END, SEPARATOR, STOP, SYSTEM_PROMPT, WrittenEdit, reject_reason
from hive_ray.pairs.inversion import invert

MIN_TRIPLETS = 10
"""The minimum for fine-tuning at OpenAI."""
KEYS = {"caption": "input", "instruction": "edit", "edited_caption": "output"}
"""Our key -> the key of InstructPix2Pix."""


@dataclass(frozen=True)
class Triplet:
    """An edit as a person wrote it."""

    caption: str
    instruction: str
    edited_caption: str


def read_triplets(address: str, *, least: int = MIN_TRIPLETS) -> list[Triplet]:
    """Read the distinct triplets of a JSONL file with the keys of `KEYS`; bad lines are skipped with a warning.

    Raises FileNotFoundError, and ValueError, which shows the first bad lines, if more than half of the lines are bad or
    fewer than `least` triplets remain.
    """
    triplets: dict[Triplet, None] = {}
    count = LineCount(f"triplets {address}")
    for line in read_json_lines(address, objects=True):
        try:
            triplets[_triplet(line)] = None
            count.add()
        except ValueError as error:
            count.add(f"{line.place}: {error}: {line.text[:SAMPLE_CHARS]!r}")
    count.raise_if_mostly_bad()
    if len(triplets) < least:
        bad = f". {count}" if count.bad else ""
        raise ValueError(f"triplets {address} has {len(triplets)} different ones; at least {least} are wanted{bad}")
    if count.bad:
        warn(f"triplets {address}: {count}\nThey are left out; {len(triplets)} triplets are taken")
    return list(triplets)


def _triplet(line: JsonLine) -> Triplet:
    if line.problem:
        raise ValueError(line.detail)
    values = [line.value.get(key, line.value.get(other)) for key, other in KEYS.items()]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"wanted text under {', '.join(KEYS)} (or {', '.join(KEYS.values())})")
    triplet = Triplet(*(" ".join(value.split()) for value in values))
    written = WrittenEdit(triplet.instruction, triplet.edited_caption, "")
    if reason := reject_reason(triplet.caption, written):
        raise ValueError(reason)
    return triplet


def chat_examples(triplets: list[Triplet]) -> list[dict]:
    """One conversation for each caption, with the request and the JSON answer of `InstructionWriter`."""
    edits: dict[str, list[dict]] = defaultdict(list)
    for triplet in triplets:
        edits[triplet.caption].append(
            {
                "instruction": triplet.instruction,
                "edited_caption": triplet.edited_caption,
                "inverse_instruction": invert(triplet.instruction).instruction,
            }
        )
    return [
        {
            "messages": [
                {"role": "system", "content": SYSTEM_PROMPT.format(count=len(written))},
                {"role": "user", "content": caption},
                {"role": "assistant", "content": json.dumps({"edits": written}, ensure_ascii=False)},
            ]
        }
        for caption, written in edits.items()
    ]


def delimited_examples(triplets: list[Triplet]) -> list[dict]:
    """One of InstructPix2Pix's prompts and completions for each triplet."""
    return [
        {
            "prompt": triplet.caption + PROMPT_END,
            "completion": triplet.instruction + SEPARATOR + triplet.edited_caption + STOP,
        }
        for triplet in triplets
    ]


EXAMPLES = {"chat": chat_examples, "delimited": delimited_examples}
"""By the setting `writer.form`."""
