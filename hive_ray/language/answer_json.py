"""What a language model's answer says: its choices, and the JSON that stands anywhere in their text.

an answer -> Choice -> find_json -> what the caller reads of a JSON value

Models think aloud, put JSON in fences, speak before and after it, or leave a comma at its end. What is there is read.
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
"""What follows the last of these is the answer."""
OPENING = re.compile(r"[{\[]")
TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*+"?)|,(?=\s*+[}\]])', re.DOTALL)
"""A text in quotes, or a comma before a closing bracket."""
MAX_STARTS, MAX_MENDED = 1000, 50
"""Brackets in a text that are tried as the start of a value, and of those that are tried without trailing commas."""
SAMPLE_LENGTH = 200
"""Characters of an answer that an account of what was left out shows."""
FENCE = re.compile(r"[\s,]*+(?:```\w*+[\s,]*+){0,2}")
"""What may stand between two objects that are one list."""


@dataclass(frozen=True)
class Choice:
    """One choice of an answer; texts are "" where it has none, and valid Unicode."""

    text: str
    """What it says: a conversation's message, or a completion."""
    reasoning: str
    """What it thought, where the endpoint tells that apart."""
    refusal: str
    """Why the model would not answer."""
    is_cut_off: bool
    """Whether it ended at the limit of its length."""
    raw: str
    """How it came, as JSON, where it has no text."""

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return not (self.text.strip() or self.reasoning.strip())

    @property
    def sample(self) -> str:
        """How it begins, for an account of what was left out."""
        return (self.refusal or self.text.strip() or self.reasoning.strip() or self.raw)[:SAMPLE_LENGTH]


def is_answer(answer: Any) -> TypeGuard[dict[str, Any]]:
    """Whether JSON from an endpoint is an answer, which was paid for: it has choices, or says what it used."""
    if not isinstance(answer, dict):
        return False
    return bool(isinstance(answer.get("choices"), list) and answer["choices"]) or isinstance(answer.get("usage"), dict)


def choices_of(answer: dict) -> list[Choice]:
    """The choices of an answer to a conversation or to a request for completions, as many as can be read."""
    choices = answer.get("choices")
    return [_choice(choice) for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def find_json(text: str, read: Callable[[Any], T | None]) -> T | None:
    """What `read` makes of the last JSON value in a text that it can read, of a non-empty result rather than an empty
    one; None if there is none.

    Values after the end of a thinking part come before those in it. `read` returns None for what is not wanted; it is
    also shown the values inside an object or list.
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
    """The JSON objects and lists in a text, outermost ones, in order; objects that follow each other are one list.

    A trailing comma and line breaks in strings are taken. What is nested too deeply for Python, or is a whole number
    of thousands of digits, is none.
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
    """Each value, the places where it begins and ends, and the text that these are places of."""
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
    """Text, or the texts among the parts of a message."""
    if isinstance(content, str):
        return replace_surrogates(content)
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return ""
