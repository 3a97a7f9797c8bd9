"""What people wrote to teach an instruction writer (InstructPix2Pix's step 1a): caption, instruction, edited caption.

a JSONL file of triplets -> examples to fine-tune a language model on
"""

import json
from collections import defaultdict
from dataclasses import dataclass

from hive_ray import storage
from hive_ray.pairs.instructions import ASKED, BETWEEN, REQUEST, STOP, Written, reject_reason
from hive_ray.pairs.inversion import invert

LEAST_TRIPLETS = 10
"""OpenAI fine-tunes on no fewer."""
PROBLEMS_SHOWN = 5
KEYS = {"caption": "input", "instruction": "edit", "edited_caption": "output"}
"""Our name of each key -> InstructPix2Pix's."""


@dataclass(frozen=True)
class Triplet:
    """An edit as a person wrote it."""

    caption: str
    instruction: str
    edited_caption: str


def read_triplets(address: str, *, least: int = LEAST_TRIPLETS) -> list[Triplet]:
    """The different triplets of a JSONL file, keys as in `KEYS`; ValueError names every line that is none (the first
    five), or says that there are too few."""
    found: dict[Triplet, None] = {}
    problems = []
    for number, line in enumerate(storage.read_text(address).splitlines(), 1):
        if not line.strip():
            continue
        try:
            found[_triplet(line)] = None
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = f" (and {len(problems) - PROBLEMS_SHOWN} more)" if len(problems) > PROBLEMS_SHOWN else ""
        raise ValueError(f"triplets {address}: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}")
    if len(found) < least:
        raise ValueError(f"triplets {address} has {len(found)} different ones; at least {least} are wanted")
    return list(found)


def _triplet(line: str) -> Triplet:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{line[:60]!r} is not JSON") from error
    values = [row.get(key, row.get(other)) for key, other in KEYS.items()] if isinstance(row, dict) else [None]
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError(f"wanted text under {', '.join(KEYS)} (or {', '.join(KEYS.values())}), not {line[:60]!r}")
    triplet = Triplet(*(" ".join(value.split()) for value in values))
    written = Written(triplet.instruction, triplet.edited_caption, "")
    if reason := reject_reason(triplet.caption, written):
        raise ValueError(f"{reason}: {line[:60]!r}")
    return triplet


def chat_examples(triplets: list[Triplet]) -> list[dict]:
    """One conversation a caption, with the request and the JSON that `InstructionWriter` asks for later."""
    edits: dict[str, list[dict]] = defaultdict(list)
    for one in triplets:
        edits[one.caption].append(
            {
                "instruction": one.instruction,
                "edited_caption": one.edited_caption,
                "inverse_instruction": invert(one.instruction).instruction,
            }
        )
    return [
        {
            "messages": [
                {"role": "system", "content": REQUEST.format(count=len(written))},
                {"role": "user", "content": caption},
                {"role": "assistant", "content": json.dumps({"edits": written}, ensure_ascii=False)},
            ]
        }
        for caption, written in edits.items()
    ]


def delimited_examples(triplets: list[Triplet]) -> list[dict]:
    """InstructPix2Pix's prompts and completions, one a triplet."""
    return [
        {"prompt": one.caption + ASKED, "completion": one.instruction + BETWEEN + one.edited_caption + STOP}
        for one in triplets
    ]


EXAMPLES = {"chat": chat_examples, "delimited": delimited_examples}
"""By the setting `writer.form`."""
