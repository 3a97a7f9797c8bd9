"""A vision-language model behind the openai client that scores edits as EditScore does, with our own prompts.

pairs -> VisionScorer -> pairs with a reward

Each pass sends two requests. The first has both pictures; the model scores how well the instruction was followed and
the rest preserved. The second has only the edited picture; the model scores how natural and how free of artifacts it
is. Each answer counts as its least score, divided by the greatest possible one. The reward of a pass is the geometric
mean of both answers, 0..1. The reward of an edit is the mean over its passes.
"""

import base64
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

from hive_ray import config
from hive_ray.images import ImageError, media_type, to_plain
from hive_ray.language.answer_cache import Request
from hive_ray.language.answer_json import SAMPLE_LENGTH, choices_of, find_json
from hive_ray.language.endpoint import Endpoint, NoAnswerError
from hive_ray.schemas import Counted, Dropped, Result, Row, Rows
from hive_ray.seeds import seed_for


@dataclass(frozen=True)
class Rubric:
    """What one of the two requests of a pass asks."""

    pictures: tuple[str, ...]
    """The columns whose pictures are sent."""
    scores: dict[str, str]
    """Name of a score -> the meaning of its greatest and its least value."""
    introduction: str
    """The text before the pictures; {instruction} is replaced."""


FOLLOWING = Rubric(
    pictures=("source_image", "edited_image"),
    scores={
        "instruction_following": "the change that was asked for is all there ({most}) or not there at all (0)",
        "preservation": "all that the instruction does not speak of is as it was ({most}) or another picture (0)",
    },
    introduction="The first picture was edited into the second by this instruction: {instruction}",
)
QUALITY = Rubric(
    pictures=("edited_image",),
    scores={
        "naturalness": "light, proportions and perspective fit together ({most}) or look wrong (0)",
        "freedom_from_artifacts": "no blur, seam, distortion or broken shape is to be seen ({most}) or many are (0)",
    },
    introduction="Judge this picture by itself.",
)
JUDGE_PROMPT = (
    "You judge edited pictures, strictly. Give each of these scores as a whole number from 0 to {most}: {scores}."
    ' Answer with JSON alone: {{"reasoning": "one sentence", {form}}}'
)


class VerdictError(ValueError):
    """An answer without usable scores. Its message is the reason that manifests count; `sample` is a part of the
    answer."""

    def __init__(self, reason: str, sample: str = "") -> None:
        super().__init__(reason)
        self.sample = sample[:SAMPLE_LENGTH]


class VisionScorer:
    """Adds the reward of a vision-language model, 0..1, to each pair.

    OPENAI_BASE_URL and OPENAI_API_KEY say where the model is. It judges `in_flight` edits concurrently. Answers are
    cached in the folder `answers`, and a request with an answer is never sent again. If scores are missing or out of
    range, the request is sent again with another seed; scores are never clamped. An edit without scores after all
    attempts becomes `Dropped`. `Counted` reports the tokens and dollars that answers used.
    """

    def __init__(self, settings: config.VisionJudge, answers: str, in_flight: int = 16) -> None:
        self.settings = settings
        self.endpoint = Endpoint(
            answers, settings.spending, structure="scoring.vision.structure", send_seed=settings.send_seed
        )
        self.pool = ThreadPoolExecutor(in_flight)

    def __call__(self, rows: Rows) -> list[Result]:
        """The rows in order, each followed by its counts; raises as `Endpoint.apply_to_rows`."""
        return [result for judged in self.endpoint.apply_to_rows(self.pool, self._judge, rows) for result in judged]

    def is_answered(self, row: Row) -> bool:
        """Whether the answers of the first pass for this pair are cached."""
        requests = [make_request(rubric, row, self.settings) for rubric in (FOLLOWING, QUALITY)]
        return all(map(self.endpoint.answers.find, requests))

    def _judge(self, row: Row) -> list[Result]:
        counted: Counter[str] = Counter()
        try:
            passes = [
                sqrt(self._least_score(FOLLOWING, row, turn, counted) * self._least_score(QUALITY, row, turn, counted))
                for turn in range(self.settings.num_passes)
            ]
            result = row | {"reward": fmean(passes)}
        except VerdictError as error:
            result = Dropped(str(error), sample=error.sample)
        return [result, Counted(dict(counted))]

    def _least_score(self, rubric: Rubric, row: Row, turn: int, counted: Counter[str]) -> float:
        """The least score of a rubric, 0..1. Adds the usage to `counted`. VerdictError after all attempts."""
        attempt = 0
        while True:
            try:
                return self._score_answer(rubric, make_request(rubric, row, self.settings, turn, attempt), counted)
            except VerdictError as error:
                if str(error) == "request_refused":  # another attempt would be refused, too
                    raise
                counted[f"asked_again_{error}"] += 1
                attempt += 1
                if attempt == self.settings.max_attempts:
                    raise

    def _score_answer(self, rubric: Rubric, request: Request, counted: Counter[str]) -> float:
        """The least score of one answer, 0..1. Adds the usage to `counted`. VerdictError without usable scores."""
        try:
            answer, counts = self.endpoint.ask(request)
        except NoAnswerError as error:
            raise VerdictError(error.reason, error.sample) from error
        counted.update(counts)
        return min(parse_scores(answer, rubric, self.settings.score_range)) / self.settings.score_range


def make_request(rubric: Rubric, row: Row, settings: config.VisionJudge, turn: int = 0, attempt: int = 0) -> Request:
    """The request about a pair by one rubric. Each turn and each attempt has its own seed."""
    most = settings.score_range
    scores = "; ".join(f"{name}: {words.format(most=most)}" for name, words in rubric.scores.items())
    form = ", ".join(f'"{name}": 0' for name in rubric.scores)
    shown = [
        {"type": "text", "text": rubric.introduction.format(instruction=row["instruction"])},
        *({"type": "image_url", "image_url": {"url": _address(row[name])}} for name in rubric.pictures),
    ]
    request: Request = {"model": settings.llm}
    if settings.temperature is not None:
        request["temperature"] = settings.temperature
    request["seed"] = seed_for(settings.seed, turn, attempt, *rubric.scores) % 2**31
    request["messages"] = [
        {"role": "system", "content": JUDGE_PROMPT.format(most=most, scores=scores, form=form)},
        {"role": "user", "content": shown},
    ]
    if settings.structure != "none":
        has_schema = settings.structure == "json_schema"
        request["response_format"] = _format(rubric) if has_schema else {"type": "json_object"}
    return request


def parse_scores(answer: dict, rubric: Rubric, score_range: int) -> list[float]:
    """The scores of an answer in the order of the rubric; VerdictError if one is missing or not in 0..score_range."""
    choices = choices_of(answer)
    if not choices:
        raise VerdictError("answer_is_empty", str(answer)[:SAMPLE_LENGTH])
    choice = choices[0]
    if choice.refusal:
        raise VerdictError("model_refused", choice.sample)

    def read(value: Any) -> list[Any] | None:
        """The scores in a JSON value, or None."""
        if not isinstance(value, dict) or not rubric.scores.keys() <= value.keys():
            return None
        return [value[name] for name in rubric.scores]

    scores = find_json(choice.text, read) or find_json(choice.reasoning, read)
    if scores is None:
        if choice.is_cut_off:
            raise VerdictError("answer_cut_off", choice.sample)
        reason = "answer_is_empty" if choice.is_empty else "answer_is_not_of_the_form"
        raise VerdictError(reason, choice.sample)
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for score in scores):
        raise VerdictError("answer_is_not_of_the_form", choice.sample)
    if not all(0 <= score <= score_range for score in scores):
        raise VerdictError("score_out_of_range", choice.sample)
    return [float(score) for score in scores]


def _format(rubric: Rubric) -> dict:
    """The JSON schema of the answer to a rubric. It has no bounds, because strict schemas do not allow them."""
    properties = {"reasoning": {"type": "string"}} | {name: {"type": "integer"} for name in rubric.scores}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "scores", "strict": True, "schema": schema}}


def _address(image: bytes) -> str:
    """A picture as a data URL; VerdictError if it cannot be read."""
    try:
        plain = to_plain(image)
    except ImageError as error:
        raise VerdictError("picture_unreadable") from error
    return f"data:{media_type(plain)};base64,{base64.b64encode(plain).decode()}"
