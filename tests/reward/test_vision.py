"""The vision judge over real HTTP, with the real client, against a server that misbehaves on purpose."""

import base64
import json
import time

import numpy as np
import pytest
from llm_server import PAGE, REFUSING, USAGE, JsonHandler, JsonServer, refusal, spoken
from mutate import mutated
from pydantic import ValidationError

from hive_ray.config import Spending, VisionJudge
from hive_ray.errors import Stopped
from hive_ray.images import decode, encode, encode_jpeg
from hive_ray.language import endpoint
from hive_ray.language.answer_cache import request_id
from hive_ray.language.endpoint import NoAnswerError, read_answer
from hive_ray.reward.vision import FOLLOWING, QUALITY, VerdictError, VisionScorer, make_request, parse_scores
from hive_ray.schemas import Counted, Dropped

GREY, WHITE = (np.full((4, 4, 3), level, dtype=np.uint8) for level in (128, 255))
GOOD = {"instruction_following": 20, "preservation": 16, "naturalness": 25, "freedom_from_artifacts": 9}


class Eyes(JsonServer):
    """Answers by the instruction: scores, whole contents, or failures, in the order in which they are asked for."""

    def __init__(self) -> None:
        super().__init__(EyesHandler)
        self.scores: dict[str, list] = {}
        self.seen: list[dict] = []


class EyesHandler(JsonHandler):
    def do_POST(self) -> None:
        request = json.loads(self.body())
        text = request["messages"][1]["content"][0]["text"]
        names = request["messages"][0]["content"]
        with self.server.lock:
            self.server.seen.append(request)
            queue = self.server.scores.get(text.rpartition(": ")[2], [])
            said = queue.pop(0) if queue else GOOD
        if request["model"] in REFUSING:
            status, body, refused = REFUSING[request["model"]]
            if refused & request.keys():
                return self.send_json(status, body, {})
        if isinstance(said, tuple):
            status, headers = said
            message = headers.pop("message", "no")
            return self.send_json(status, refusal(message), headers)
        if isinstance(said, bytes) or said is PAGE or (isinstance(said, dict) and {"choices", "error"} & said.keys()):
            return self.send_json(200, said, {})
        if isinstance(said, dict):
            said = json.dumps({"reasoning": "so"} | {name: score for name, score in said.items() if name in names})
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": USAGE, "choices": [choice]}
        return self.send_json(200, body, {})


@pytest.fixture
def eyes(monkeypatch):
    with Eyes().found(monkeypatch) as server:
        yield server


def pair(instruction: str = "add a hat") -> dict:
    return {
        "pair_id": instruction, "instruction": instruction, "source_image": encode(GREY),
        "edited_image": encode(WHITE),
    }  # fmt: skip


def scorer(folder, **settings) -> VisionScorer:
    return VisionScorer(VisionJudge(**settings), str(folder), in_flight=4)


def test_the_reward_is_the_geometric_mean_of_the_least_scores_as_shares(eyes, tmp_path):
    scored, counted = scorer(tmp_path)([pair()])
    assert scored["reward"] == pytest.approx((16 / 25 * 9 / 25) ** 0.5)  # 0.48
    assert scored["instruction"] == "add a hat"
    assert counted == Counted({"prompt_tokens": 200, "completion_tokens": 100})


def test_the_reward_is_the_mean_over_passes_each_with_another_seed(eyes, tmp_path):
    eyes.scores["add a hat"] = [GOOD, dict.fromkeys(GOOD, 25)]  # the parts about the instruction, in turn
    scored, _ = scorer(tmp_path, num_passes=2)([pair()])
    assert scored["reward"] == pytest.approx(((16 / 25 * 9 / 25) ** 0.5 + (25 / 25 * 9 / 25) ** 0.5) / 2)
    assert len({request["seed"] for request in eyes.seen}) == 4


def test_quality_is_asked_of_the_edited_picture_alone(eyes, tmp_path):
    scorer(tmp_path)([pair()])
    shown = {}
    for request in eyes.seen:
        contents = request["messages"][1]["content"]
        urls = [content["image_url"]["url"] for content in contents if content["type"] == "image_url"]
        shown[tuple(request["response_format"]["json_schema"]["schema"]["required"])] = [
            decode(base64.b64decode(url.removeprefix("data:image/png;base64,"))).mean() for url in urls
        ]
    assert shown == {("reasoning", *FOLLOWING.scores): [128, 255], ("reasoning", *QUALITY.scores): [255]}


def test_a_jpeg_is_sent_as_one_and_the_range_is_said(tmp_path):
    row, settings = pair() | {"edited_image": encode_jpeg(WHITE)}, VisionJudge(score_range=10, structure="json_object")
    request = make_request(QUALITY, row, settings)
    assert request["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert "from 0 to 10" in request["messages"][0]["content"]
    assert request["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (GOOD | {"preservation": 26}, "score_out_of_range"),
        (GOOD | {"preservation": -1}, "score_out_of_range"),
        (GOOD | {"preservation": "great"}, "answer_is_not_of_the_form"),
        ({"instruction_following": 3}, "answer_is_not_of_the_form"),
        ("I like it", "answer_is_not_of_the_form"),
        ("[1, 2]", "answer_is_not_of_the_form"),
        (GOOD | {"preservation": True}, "answer_is_not_of_the_form"),
        ('{"reasoning": "so", "instruction_following": NaN, "preservation": 1e999}', "score_out_of_range"),
        ("", "answer_is_empty"),
        (spoken(None), "answer_is_empty"),
        (spoken("") | {"choices": []}, "answer_is_empty"),
        (spoken("") | {"choices": [], "usage": None}, "answer_is_empty"),
        (spoken(None, refusal="I cannot"), "model_refused"),
        (PAGE, "answer_is_not_json"),
        ({"error": {"message": "Provider returned error", "code": 502}}, "answer_is_an_error"),
        (b"[" * 9_000, "answer_is_not_json"),
    ],
)
def test_scores_that_cannot_be_used_are_asked_for_again_and_never_bent(eyes, tmp_path, monkeypatch, wrong, reason):
    monkeypatch.setattr(endpoint, "RETRY_WAITS_S", ())
    eyes.scores["add a hat"] = [wrong.copy() if isinstance(wrong, dict) else wrong, GOOD]
    scored, counted = scorer(tmp_path / "once")([pair()])
    assert scored["reward"] == pytest.approx(0.48)
    assert counted.values[f"asked_again_{reason}"] == 1
    eyes.scores["add a hat"] = [wrong] * 2
    dropped = scorer(tmp_path / "always", max_attempts=2)([pair()])[0]
    assert dropped.reason == reason
    assert len(dropped.sample) <= 300


SCORES = json.dumps({"reasoning": "so [good] {it} is"} | GOOD)


@pytest.mark.parametrize("said", [
    f"<think>\n25 of {{25}}?\n</think>\n{SCORES}", f"```\n{SCORES}\n```", f"Here:\n```json\n{SCORES}\n```\nBye {{all}}",
    SCORES[:-1] + ",}", json.dumps({"scores": GOOD}), f"[{SCORES}]", SCORES.replace("so", "so\nand"),
    spoken(None, reasoning_content=f"I think {SCORES}"), spoken([{"type": "text", "text": SCORES}]),
    f"<think>{SCORES.replace('16', '3')}{SCORES}",
])  # fmt: skip
def test_the_scores_that_are_in_an_answer_are_read(eyes, tmp_path, said):
    eyes.scores["add a hat"] = [said]
    assert scorer(tmp_path, max_attempts=1)([pair()])[0]["reward"] == pytest.approx(0.48)


@pytest.mark.parametrize("model", REFUSING)
def test_what_a_model_refuses_is_left_out(eyes, tmp_path, capsys, model):
    assert scorer(tmp_path, llm=model)([pair()])[0]["reward"] == pytest.approx(0.48)
    assert not REFUSING[model][2] & eyes.seen[-1].keys()
    assert "leave it out from here on" in capsys.readouterr().out
    before = len(eyes.seen)
    assert scorer(tmp_path, llm=model)([pair()])[0]["reward"] == pytest.approx(0.48)
    assert len(eyes.seen) == before


def test_without_seeds_another_attempt_is_another_request(eyes, tmp_path):
    eyes.scores["add a hat"] = ["no", GOOD]
    judge = scorer(tmp_path, temperature=None, send_seed=False, structure="none")
    assert judge([pair()])[0]["reward"] == pytest.approx(0.48)
    assert len(eyes.seen) == 3
    assert not {"temperature", "seed", "response_format"} & eyes.seen[0].keys()
    assert judge([pair()])[0]["reward"] == pytest.approx(0.48)
    assert len(eyes.seen) == 3


def test_requests_have_the_ids_that_they_always_had():
    pictures = [encode(np.full((2, 2, 3), level, np.uint8)) for level in (10, 200)]
    row = {"instruction": "add a hat", "source_image": pictures[0], "edited_image": pictures[1]}
    ids = [request_id(make_request(part, row, VisionJudge(), 1, 2)) for part in (FOLLOWING, QUALITY)]
    assert ids == ["84cf197d78809c3e", "512c67e97a142b45"]


def test_an_endpoint_without_schemas_stops_the_stage_and_names_the_setting(eyes, tmp_path):
    eyes.scores["add a hat"] = [(400, {"message": "Structured outputs are not supported by this backend"})]
    with pytest.raises(
        Stopped, match=r"does not support json_schema: set scoring\.vision\.structure to json_object or none"
    ):
        scorer(tmp_path)([pair()])


def test_mutated_answers_are_scores_or_a_named_reason():
    texts = [SCORES, f"```json\n{SCORES}\n```", f"<think>{{}}</think>{SCORES}", SCORES[:-1] + ",}"]
    bodies = [json.dumps(spoken(SCORES)), json.dumps(spoken(None, reasoning=SCORES))]
    scored = 0
    reasons: set[str] = set()
    for data in mutated([text.encode() for text in (*texts, *bodies)]):
        for body in (data, json.dumps(spoken(data.decode(errors="replace"))).encode()):
            try:
                scores = parse_scores(read_answer(body), FOLLOWING, 25)
                assert all(0 <= score <= 25 for score in scores)
                scored += 1
            except (VerdictError, NoAnswerError) as error:
                reasons.add(error.reason if isinstance(error, NoAnswerError) else str(error))
    print(f"{scored} answers with scores")
    assert scored
    assert reasons <= {
        "answer_is_not_of_the_form", "answer_is_not_json", "answer_has_no_choices", "answer_is_empty", "answer_cut_off",
        "score_out_of_range", "model_refused", "answer_is_an_error",
    }  # fmt: skip


def test_a_kept_answer_is_not_asked_for_again_but_another_picture_is(eyes, tmp_path):
    first = scorer(tmp_path)([pair()])
    assert scorer(tmp_path)([pair()]) == first
    assert len(eyes.seen) == 2
    scorer(tmp_path)([pair() | {"edited_image": encode(GREY)}])
    assert len(eyes.seen) == 4


def test_a_server_that_is_busy_is_asked_again_when_it_says(eyes, tmp_path):
    eyes.scores["add a hat"] = [(429, {"Retry-After": "1"}), (500, {"Retry-After": "0"}), GOOD]
    started = time.monotonic()
    assert scorer(tmp_path)([pair()])[0]["reward"] == pytest.approx(0.48)
    assert time.monotonic() - started >= 1
    assert len(eyes.seen) == 4


def test_a_refused_key_stops_and_a_refused_request_drops_its_edit_alone(eyes, tmp_path):
    eyes.scores["rude"] = [(400, {})]
    rows = [row for row in scorer(tmp_path)([pair("rude"), pair()]) if not isinstance(row, Counted)]
    assert rows[0] == Dropped("request_refused", sample="Error code: 400 - no")
    assert rows[1]["reward"] == pytest.approx(0.48)
    eyes.scores["wear a hat"] = [(401, {})]
    with pytest.raises(Stopped, match="out of reach"):
        scorer(tmp_path)([pair("wear a hat")])


def test_no_more_is_spent_than_allowed(eyes, tmp_path):
    prices = Spending(prompt_price=1000, completion_price=2000, most_dollars=0.1)  # an answer costs 20 cents
    with pytest.raises(Stopped, match=r"\$0.2 of \$0.1"):
        scorer(tmp_path, spending=prices)([pair()])
    assert len(eyes.seen) == 1


def test_the_batch_api_is_refused_in_the_settings():
    with pytest.raises(ValidationError, match="does not use the Batch API"):
        VisionJudge(spending=Spending(batch=True))
