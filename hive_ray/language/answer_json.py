"""Parse the answer of a language model: its choices, and JSON anywhere in their text.

an answer -> Choice -> find_json -> the value that the caller makes of the JSON

Models reason aloud, put JSON in code fences, add text around it, or leave a trailing comma. The parser accepts all of
these.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from hive_ray.files.text_files import replace_surrogates

T = TypeVar("T")
REASONING_END = re.compile(
    r"</(?:\w{1,16}:)?(?:think|thinking|thought|thoughts|reasoning|reflection)>|\[/THINK\]|<\|end_of_thought\|>"
    r"|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
"""The ends of a reasoning part; the answer follows the last of them."""
OPENING = re.compile(r"[{\[]")
TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*+"?)|,(?=\s*+[}\]])', re.DOTALL)
"""A text in quotes, or a comma before a closing bracket."""
MAX_STARTS, MAX_MENDED = 1000, 50
"""How many brackets in a text are tried as the start of a value, and how many again without trailing commas."""
SAMPLE_LENGTH = 200
"""How many characters of an answer a message shows."""
FENCE = re.compile(r"[\s,]*+(?:```\w*+[\s,]*+){0,2}")
"""What may separate objects that form one list."""


@dataclass(frozen=True)
class Choice:
    """One choice of an answer; missing texts are "", and all texts are valid Unicode."""

    text: str
    """The message of a conversation, or the completion."""
    reasoning: str
    """The reasoning, if the endpoint returns it separately."""
    refusal: str
    """Why the model refused to answer."""
    is_cut_off: bool
    """Whether it was cut off at the token limit."""
    raw: str
    """The choice as JSON, if it has no text."""

    @property
    def is_empty(self) -> bool:
        """Whether it has neither text nor reasoning."""
        return not (self.text.strip() or self.reasoning.strip())

    @property
    def sample(self) -> str:
        """Its first characters, for messages."""
        return (self.refusal or self.text.strip() or self.reasoning.strip() or self.raw)[:SAMPLE_LENGTH]


def is_answer(answer: Any) -> TypeGuard[dict[str, Any]]:
    """Whether JSON from an endpoint is a billed answer: it has choices or a usage."""
    if not isinstance(answer, dict):
        return False
    return bool(isinstance(answer.get("choices"), list) and answer["choices"]) or isinstance(answer.get("usage"), dict)


def choices_of(answer: dict) -> list[Choice]:
    """The readable choices of a chat or text completion."""
    choices = answer.get("choices")
    return [_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def find_json(text: str, read: Callable[[Any], T | None]) -> T | None:
    """Apply `read` to the JSON values in a text, last one first, and return its first non-empty result.

    Without one, returns an empty result, or None if `read` returned only None. `read` returns None for values of
    another form. It also gets the values inside an object or list. Values after the reasoning part come before those
    inside it.
    """
    answer = text[_thoughts_end(text) :]
    empty = None
    for part in dict.fromkeys((answer, text)):
        for value in reversed(json_values(part)):
            for shown in (value, *(value.values() if isinstance(value, dict) else reversed(value))):
                made = read(shown)
                if made:
                    return made
                empty = made if empty is None else empty
    return empty


def json_values(text: str) -> list[Any]:
    """The outermost JSON objects and lists in a text, in order; consecutive objects form one list.

    Trailing commas and line breaks in strings are accepted. Values that are nested too deeply for Python, or contain
    integers with thousands of digits, are skipped.
    """
    values: list[Any] = []
    run: list[dict] = []
    last_end = -1
    for value, start, end, read in _decoded(text):
        follows = last_end >= 0 and FENCE.fullmatch(read, last_end, start)
        last_end = end
        if run and not (follows and isinstance(value, dict)):
            values.append(run[0] if len(run) == 1 else run)
            run = []
        if isinstance(value, dict):
            run.append(value)
        else:
            values.append(value)
    if run:
        values.append(run[0] if len(run) == 1 else run)
    return values


def _decoded(text: str) -> Iterator[tuple[Any, int, int, str]]:
    """Yield each value, its start and end, and the text that these positions refer to."""
    decoder = json.JSONDecoder(strict=False)
    mendable = MAX_MENDED if re.search(r",\s*+[}\]]", text) else 0
    place = 0
    for _ in range(MAX_STARTS):
        opening = OPENING.search(text, place)
        if not opening:
            return
        start = opening.start()
        made = _raw(decoder, text, start)
        if made is None and mendable:
            mendable -= 1
            mended = text[:start] + TRAILING_COMMA.sub(lambda match: match[1] or "", text[start:])
            made = _raw(decoder, mended, start)
            text = mended if made else text
        if made is None:
            place = start + 1
            continue
        value, place = made
        yield value, start, place, text


def _raw(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int] | None:
    try:
        value, end = decoder.raw_decode(text, start)
        return replace_surrogates(value), end
    except (ValueError, RecursionError):
        return None


def _thoughts_end(text: str) -> int:
    return max((match.end() for match in REASONING_END.finditer(text)), default=0)


def _choice(choice: dict) -> Choice:
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {"content": choice.get("text")}
    text = _text(message.get("content"))
    thoughts = _text(message.get("reasoning_content") or message.get("reasoning"))
    refusal = _text(message.get("refusal"))
    if choice.get("finish_reason") == "content_filter":
        refusal = refusal or "content_filter"
    raw = "" if text or thoughts else json.dumps(choice)[:SAMPLE_LENGTH]
    return Choice(text, thoughts, refusal, choice.get("finish_reason") == "length", raw)


def _text(content: Any) -> str:
    """The text of a message, or the joined texts of its parts."""
    if isinstance(content, str):
        return replace_surrogates(content)
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return ""
