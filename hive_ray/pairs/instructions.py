"""Captions -> edits in words by a language model behind the openai client (InstructPix2Pix's step 1a).

caption -> instruction, edited caption, inverse instruction
"""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from hive_ray.config import Instructions
from hive_ray.language.answer_cache import Request
from hive_ray.language.answer_json import SAMPLE_LENGTH, Choice, choices_of, find_json
from hive_ray.language.endpoint import Endpoint, NoAnswerError
from hive_ray.pairs.inversion import invert
from hive_ray.schemas import Counted, Dropped, Result, Row, Rows
from hive_ray.seeds import id_for, seed_for, split_for

EDIT_KEYS = ("instruction", "edited_caption", "inverse_instruction")
SYSTEM_PROMPT = (
    "You write edits of pictures. Given the caption of a picture, write {count} different short instructions, each an"
    " imperative that changes one thing in it (add, remove, replace or recolour something, change the place, the"
    " weather or the style), the caption of the edited picture, and the instruction that would undo the edit, or an"
    ' empty string if none can. Answer with JSON alone: {{"edits": [{{"instruction": "...", "edited_caption": "...",'
    ' "inverse_instruction": "..."}}]}}'
)
SCHEMA = {
    "type": "object",
    "properties": {
        "edits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {name: {"type": "string"} for name in EDIT_KEYS},
                "required": list(EDIT_KEYS),
                "additionalProperties": False,
            },
        }
    },
    "required": ["edits"],
    "additionalProperties": False,
}
"""JSON schema of an answer, for endpoints that enforce schemas."""
RESPONSE_FORMATS = {
    "json_schema": {"type": "json_schema", "json_schema": {"name": "edits", "strict": True, "schema": SCHEMA}},
    "json_object": {"type": "json_object"},
}
"""By the setting `instructions.structure`."""
PROMPT_END = "\n##\n"
SEPARATOR = "\n%%\n"
STOP = "\nEND"
"""InstructPix2Pix's delimiters: caption ## instruction %% edited caption END."""
WRONG_FORMAT = "answer_is_not_of_the_form"
EMPTY = "answer_is_empty"
EMPTY_EDIT = "empty_edit"
MAX_TOKENS, FREQUENCY_PENALTY = 256, 0.1
"""Settings of delimited completions, as in InstructPix2Pix."""


@dataclass(frozen=True)
class WrittenEdit:
    """One edit, as the model wrote it."""

    instruction: str
    edited_caption: str
    inverse_instruction: str


class AnswerFormatError(ValueError):
    """An answer without the expected format."""


def parse_answer(text: str) -> list[WrittenEdit]:
    """Parse the edits of an answer; AnswerFormatError if it contains no JSON of the expected form.

    {"edits": [...]}, a list of edits and a single edit are accepted anywhere in the text; the last one counts. Values
    that are not text count as empty.
    """
    edits = find_json(text, _usable_edits) or find_json(text, _edits)
    if edits is None:
        raise AnswerFormatError(f"the language model answered {text[:80]!r}, not the JSON that was asked for")
    return edits


def _usable_edits(value: Any) -> list[WrittenEdit] | None:
    """As `_edits`, but None if all texts are empty, as when a model repeats the template."""
    edits = _edits(value)
    return edits if any(edit.instruction and edit.edited_caption for edit in edits or ()) else None


def _edits(value: Any) -> list[WrittenEdit] | None:
    """The edits in a JSON value; items that are not edits get empty texts. None if the value has another form."""
    if isinstance(value, dict):
        value = value.get("edits", [value])
    if not isinstance(value, list) or (value and not any(map(_is_edit, value))):
        return None
    return [_edit(edit) if _is_edit(edit) else WrittenEdit("", "", "") for edit in value]


def _is_edit(value: Any) -> bool:
    return isinstance(value, dict) and "instruction" in value and "edited_caption" in value


def _edit(edit: dict) -> WrittenEdit:
    return WrittenEdit(*(_text(edit.get(name)) for name in EDIT_KEYS))


def _text(value: Any) -> str:
    """The stripped text; "" for other types, and for a text without letters and digits, such as "..."."""
    stripped = value.strip() if isinstance(value, str) else ""
    return stripped if any(map(str.isalnum, stripped)) else ""


def parse_delimited(text: str) -> WrittenEdit:
    """Parse the edit of a completion; AnswerFormatError if it does not have InstructPix2Pix's format."""
    instruction, between, edited_caption = text.removesuffix(STOP).partition(SEPARATOR)
    if not between:
        raise AnswerFormatError(f"the language model answered {text[:80]!r}, without {SEPARATOR.strip()!r}")
    return WrittenEdit(instruction.strip(), edited_caption.strip(), "")


def read_edits(answer: dict, form: str = "chat") -> tuple[list[WrittenEdit], list[Dropped]]:
    """The edits of an answer and its dropped rows; at least one of the two lists is not empty."""
    choices = choices_of(answer)
    if not choices:
        return [], [_dropped(EMPTY, json.dumps(answer))]
    made = [_read_choice(choice, form) for choice in (choices[:1] if form == "chat" else choices)]
    return [edit for edits, _ in made for edit in edits], [row for _, dropped in made for row in dropped]


def _read_choice(choice: Choice, form: str) -> tuple[list[WrittenEdit], list[Dropped]]:
    """The edits of one choice, or why it has none."""
    if choice.refusal:
        return [], [_dropped("model_refused", choice.sample)]
    try:
        edits = _parsed(choice, form)
    except AnswerFormatError:
        if choice.is_cut_off:
            return [], [_dropped("answer_cut_off", choice.sample)]
        return [], [_dropped(EMPTY if choice.is_empty else WRONG_FORMAT, choice.sample)]
    return edits, [] if edits else [_dropped(EMPTY, choice.sample)]


def _parsed(choice: Choice, form: str) -> list[WrittenEdit]:
    if form != "chat":
        if choice.is_cut_off:
            raise AnswerFormatError("the completion is cut off")
        return [parse_delimited(choice.text)]
    try:
        return parse_answer(choice.text)
    except AnswerFormatError:
        if not choice.reasoning:
            raise
        return parse_answer(choice.reasoning)


def _dropped(reason: str, sample: str) -> Dropped:
    return Dropped(reason, sample=sample[:SAMPLE_LENGTH])


def reject_reason(caption: str, written: WrittenEdit) -> str | None:
    """Why an edit is not kept (InstructPix2Pix's checks), or None."""
    if not written.instruction or not written.edited_caption:
        return EMPTY_EDIT
    if _plain(written.edited_caption) == _plain(caption):
        return "caption_unchanged"
    return None


def _plain(text: str) -> str:
    return text.strip().strip(".!?").strip().lower()


def build_request(row: Row, settings: Instructions, examples: list[dict]) -> Request:
    """The request for edits of a caption, with few-shot `examples` (made by triplets.EXAMPLES)."""
    request: Request = {"model": settings.llm}
    if settings.temperature is not None:
        request["temperature"] = settings.temperature
    request["seed"] = seed_for(settings.seed, row["caption_id"]) % 2**31
    if settings.form == "delimited":
        shown = "".join(f"{example['prompt']}{example['completion']}\n" for example in examples)
        return request | {
            "prompt": shown + row["caption"] + PROMPT_END,
            "n": settings.per_caption,
            "max_tokens": MAX_TOKENS,
            "frequency_penalty": FREQUENCY_PENALTY,
            "stop": STOP,
        }
    request["messages"] = [
        {"role": "system", "content": SYSTEM_PROMPT.format(count=settings.per_caption)},
        *(message for example in examples for message in example["messages"][1:]),
        {"role": "user", "content": row["caption"]},
    ]
    if settings.structure != "none":
        request["response_format"] = RESPONSE_FORMATS[settings.structure]
    return request


class InstructionWriter:
    """Captions -> instructions, by a language model at OPENAI_BASE_URL with the key OPENAI_API_KEY.

    `resources.batch_size` is the number of requests in flight. Answers are cached in the folder `answers`. The inverse
    instruction comes from a rule if one applies (`pairs/inversion.py`), otherwise from the model. Edits without one are
    counted with the reason of the rule.

    Each caption becomes rows, or `Dropped` with a sample of an unusable answer.
    """

    def __init__(
        self, settings: Instructions, answers: str, examples: list[dict] | None = None, device: str = "cpu"
    ) -> None:
        self.settings, self.examples = settings, examples or []
        self.endpoint = Endpoint(answers, settings.spending, send_seed=settings.send_seed)
        self.pool = ThreadPoolExecutor(settings.resources.batch_size)

    def __call__(self, rows: Rows) -> list[Result]:
        """The instructions of these captions, in order, and what they counted; raises as `Endpoint.apply_to_rows`."""
        return [
            written for answered in self.endpoint.apply_to_rows(self.pool, self._written, rows) for written in answered
        ]

    def _written(self, row: Row) -> list[Result]:
        if any(self._flagged([row["caption"]])):
            return [Dropped("caption_flagged")]
        try:
            answer, counts = self.endpoint.ask(build_request(row, self.settings, self.examples))
        except NoAnswerError as error:
            return [error.dropped]
        edits, results = read_edits(answer, self.settings.form)
        counted = Counter(counts)
        row_of: dict[str, Row] = {}
        ordered = sorted(edits, key=lambda edit: reject_reason(row["caption"], edit) == EMPTY_EDIT)
        edits = ordered[: self.settings.per_caption]
        flagged = self._flagged([f"{edit.instruction}\n{edit.edited_caption}" for edit in edits])
        for edit, is_flagged in zip(edits, flagged, strict=True):
            reason = reject_reason(row["caption"], edit) or ("duplicate" if edit.instruction in row_of else None)
            reason = reason or ("edit_flagged" if is_flagged else None)
            if reason == EMPTY_EDIT:
                results.append(_dropped(reason, json.dumps(asdict(edit), ensure_ascii=False)))
            elif reason:
                results.append(Dropped(reason))
            else:
                inversion = invert(edit.instruction)
                inverse = inversion.instruction or edit.inverse_instruction
                row_of[edit.instruction] = self._row(row, edit, inverse)
                if not inverse:
                    counted[f"no_inverse_{inversion.refused}"] += 1
        return [*row_of.values(), *results, Counted(dict(counted))]

    def _flagged(self, texts: list[str]) -> list[bool]:
        """Whether the endpoint's moderation flags each text; all False without the setting."""
        return self.endpoint.flagged(texts) if self.settings.moderation and texts else [False] * len(texts)

    def _row(self, row: Row, edit: WrittenEdit, inverse_instruction: str) -> Row:
        settings = self.settings
        return {
            "instruction_id": id_for(row["caption_id"], edit.instruction, edit.edited_caption),
            "caption_id": row["caption_id"],
            "source_caption": row["caption"],
            "instruction": edit.instruction,
            "edited_caption": edit.edited_caption,
            "inverse_instruction": inverse_instruction,
            "writer": settings.llm,
            "split": split_for(row["caption_id"], rank_rate=settings.rank_rate, test_rate=settings.test_rate),
        }
