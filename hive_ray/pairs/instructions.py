"""Captions -> edits in words by a language model behind the openai client (InstructPix2Pix's step 1a).

caption -> instruction, edited caption, inverse instruction
"""

import json
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from openai import BadRequestError, OpenAI

from hive_ray.config import Instructions
from hive_ray.pairs.inversion import invert
from hive_ray.schemas import Row, Rows
from hive_ray.seeds import id_for, seed_for, split_for

EDIT_KEYS = ("instruction", "edited_caption", "inverse_instruction")
REQUEST = (
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
"""What an answer in JSON is held to, where the endpoint can."""
FORMATS = {
    "json_schema": {"type": "json_schema", "json_schema": {"name": "edits", "strict": True, "schema": SCHEMA}},
    "json_object": {"type": "json_object"},
}
"""By the setting `instructions.structure`."""
ASKED, BETWEEN, STOP = "\n##\n", "\n%%\n", "\nEND"
"""InstructPix2Pix's delimiters: caption ## instruction %% edited caption END."""
NOT_OF_THE_FORM = "answer_is_not_of_the_form"
TEMPERATURE = 0.7
MAX_TOKENS, FREQUENCY_PENALTY = 256, 0.1
"""Of a delimited completion, as InstructPix2Pix's."""
TIMEOUT_S = 60.0
MAX_RETRIES = 5
"""Times that the client asks again after 429, 5xx or a broken connection, waiting as Retry-After says."""


@dataclass(frozen=True)
class Written:
    """One edit as the model wrote it."""

    instruction: str
    edited_caption: str
    inverse_instruction: str


class AnswerError(ValueError):
    """An answer that is not the JSON that was asked for."""


def parse_answer(text: str) -> list[Written]:
    """The edits of an answer; AnswerError if it is no JSON of the wanted form."""
    try:
        edits = json.loads(text.strip().removeprefix("```json").removesuffix("```"))["edits"]
        return [
            Written(
                str(edit["instruction"]).strip(),
                str(edit["edited_caption"]).strip(),
                str(edit.get("inverse_instruction") or "").strip(),
            )
            for edit in edits
        ]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise AnswerError(f"the language model answered {text[:80]!r}, not the JSON that was asked for") from error


def parse_delimited(text: str) -> Written:
    """The edit of a completion; AnswerError if it is not of InstructPix2Pix's form."""
    instruction, between, edited_caption = text.removesuffix(STOP).partition(BETWEEN)
    if not between:
        raise AnswerError(f"the language model answered {text[:80]!r}, without {BETWEEN.strip()!r}")
    return Written(instruction.strip(), edited_caption.strip(), "")


def reject_reason(caption: str, written: Written) -> str | None:
    """Why an edit is not kept (InstructPix2Pix's checks), or None."""
    if not written.instruction or not written.edited_caption:
        return "empty_edit"
    if _plain(written.edited_caption) == _plain(caption):
        return "caption_unchanged"
    return None


def _plain(text: str) -> str:
    return text.strip().strip(".!?").strip().lower()


class InstructionWriter:
    """Captions -> instructions; OPENAI_BASE_URL and OPENAI_API_KEY say where the model is.

    As many requests are in flight as `resources.batch_size` says. What undoes an edit goes by rule where its words say
    it (`pairs/inversion.py`), else by the model.
    """

    def __init__(self, settings: Instructions, device: str = "cpu") -> None:
        self.settings = settings
        self.client = OpenAI(max_retries=MAX_RETRIES, timeout=TIMEOUT_S)
        self.pool = ThreadPoolExecutor(settings.resources.batch_size)
        self.answered: dict[str, Rows] = {}

    def __call__(self, rows: Rows) -> Rows:
        """The instructions of these captions, in order; raises the first error once all the others have answered.

        Answers of a call that raised are kept: asked for again without the caption that failed, they cost nothing.
        """
        new = [row for row in rows if row["caption_id"] not in self.answered]
        asked = {row["caption_id"]: self.pool.submit(self._written, row) for row in new}
        wait(asked.values())
        self.answered |= {caption_id: one.result() for caption_id, one in asked.items() if not one.exception()}
        for one in asked.values():
            one.result()
        return [written for row in rows for written in self.answered.pop(row["caption_id"])]

    def _written(self, row: Row) -> Rows:
        ask = self._delimited if self.settings.form == "delimited" else self._chat
        if any(self._flagged([row["caption"]])):
            return [{"dropped": "caption_flagged"}]
        try:
            edits, results = ask(row)
        except AnswerError:
            return [{"dropped": NOT_OF_THE_FORM}]
        except BadRequestError as error:
            if "response_format" in str(error):  # the setting's fault, not the caption's
                raise ValueError(
                    f"the endpoint knows no {self.settings.structure}: set instructions.structure"
                ) from error
            return [{"dropped": "request_refused"}]
        found: dict[str, Row] = {}
        edits = edits[: self.settings.per_caption]
        flagged = self._flagged([f"{edit.instruction}\n{edit.edited_caption}" for edit in edits])
        for edit, is_flagged in zip(edits, flagged, strict=True):
            reason = reject_reason(row["caption"], edit) or ("duplicate" if edit.instruction in found else None)
            reason = reason or ("edit_flagged" if is_flagged else None)
            if reason:
                results.append({"dropped": reason})
            else:
                found[edit.instruction] = self._row(row, edit)
        return [*found.values(), *results]

    def _chat(self, row: Row) -> tuple[list[Written], Rows]:
        """All edits of one answer in JSON, and what was dropped."""
        settings = self.settings
        answer = self.client.chat.completions.create(
            model=settings.llm,
            messages=[
                {"role": "system", "content": REQUEST.format(count=settings.per_caption)},
                {"role": "user", "content": row["caption"]},
            ],
            temperature=TEMPERATURE,
            response_format=FORMATS[settings.structure],
            seed=self._seed(row),
        ).choices[0]
        if answer.message.refusal:
            return [], [{"dropped": "model_refused"}]
        if answer.finish_reason == "length":
            return [], [{"dropped": "answer_cut_off"}]
        edits = parse_answer(answer.message.content or "")
        return edits, [] if edits else [{"dropped": "answer_is_empty"}]

    def _delimited(self, row: Row) -> tuple[list[Written], Rows]:
        """One edit each of several completions, and what was dropped (InstructPix2Pix's form)."""
        settings = self.settings
        answer = self.client.completions.create(
            model=settings.llm,
            prompt=row["caption"] + ASKED,
            n=settings.per_caption,
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS,
            frequency_penalty=FREQUENCY_PENALTY,
            stop=STOP,
            seed=self._seed(row),
        )
        edits, dropped = [], []
        for choice in answer.choices:
            if choice.finish_reason == "length":
                dropped.append({"dropped": "answer_cut_off"})
                continue
            try:
                edits.append(parse_delimited(choice.text))
            except AnswerError:
                dropped.append({"dropped": NOT_OF_THE_FORM})
        return edits, dropped

    def _flagged(self, texts: list[str]) -> list[bool]:
        """Which texts the endpoint's moderation flags; none if it is not to be asked."""
        if not (self.settings.moderation and texts):
            return [False] * len(texts)
        return [result.flagged for result in self.client.moderations.create(input=texts).results]

    def _seed(self, row: Row) -> int:
        return seed_for(self.settings.seed, row["caption_id"]) % 2**31

    def _row(self, row: Row, edit: Written) -> Row:
        settings = self.settings
        return {
            "instruction_id": id_for(row["caption_id"], edit.instruction, edit.edited_caption),
            "caption_id": row["caption_id"],
            "source_caption": row["caption"],
            "instruction": edit.instruction,
            "edited_caption": edit.edited_caption,
            "inverse_instruction": invert(edit.instruction).instruction or edit.inverse_instruction,
            "writer": settings.llm,
            "split": split_for(row["caption_id"], rank_rate=settings.rank_rate, test_rate=settings.test_rate),
        }
