"""The writer over real HTTP, with the real client, against a server that misbehaves on purpose."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from llm_server import EDIT, edits

from hive_ray import endpoint
from hive_ray.config import Instructions, Resources
from hive_ray.pairs import instructions
from hive_ray.pairs.instructions import InstructionWriter, parse_answer
from hive_ray.schemas import INSTRUCTIONS, Rows, Stopped, to_table


@pytest.fixture
def writer(tmp_path):
    """A maker of writers, each with a folder of answers of its own; what they count is left out."""
    number = itertools.count()

    def make(**settings) -> Callable[[Rows], Rows]:
        write = one_writer(tmp_path / str(next(number)), **settings)
        return lambda rows: [row for row in write(rows) if row.keys() != {"counted"}]

    return make


def one_writer(answers: Path, batch_size: int = 4, examples=(), **settings) -> InstructionWriter:
    resources = Resources(num_gpus=0, batch_size=batch_size)
    asked = Instructions(writer="openai", resources=resources, **settings)
    return InstructionWriter(asked, str(answers), list(examples))


def captions(*texts: str) -> list[dict]:
    return [{"caption_id": f"id of {text}", "caption": text} for text in texts]


def test_edits_become_rows_of_the_contract_with_their_inverse(chat, writer):
    chat.answers["a cat"] = edits({}, {"instruction": "make it wink", "edited_caption": "a cat winks"})
    rows = writer(per_caption=2)(captions("a cat"))
    to_table(rows, INSTRUCTIONS)
    assert [row["instruction"] for row in rows] == ["add a hat", "make it wink"]
    assert [row["inverse_instruction"] for row in rows] == ["remove the hat", "lose the hat"]  # by rule, by the model
    assert {row["source_caption"] for row in rows} == {"a cat"}


def test_the_request_says_what_is_wanted(chat, writer):
    writer(per_caption=3, llm="tiny")(captions("a cat"))
    request = chat.seen[0]
    assert request["model"] == "tiny"
    assert request["response_format"]["json_schema"]["schema"] == instructions.SCHEMA
    assert "write 3 different" in request["messages"][0]["content"]
    writer(per_caption=3)(captions("a cat"))
    assert chat.seen[1]["seed"] == request["seed"]
    writer(structure="json_object")(captions("a cat"))
    assert chat.seen[2]["response_format"] == {"type": "json_object"}


def test_the_schema_holds_what_the_parser_takes():
    parsed = parse_answer(edits({}))[0]
    required = instructions.SCHEMA["properties"]["edits"]["items"]["required"]
    assert {name: getattr(parsed, name) for name in required} == EDIT


def test_what_moderation_flags_is_dropped_before_anything_is_asked_of_it(chat, writer):
    rude = {"instruction": "be rude", "edited_caption": "a rude dog"}
    chat.answers["a dog"] = edits(rude, {"instruction": "add a bow", "edited_caption": "a dog with a bow"})
    rows = writer(moderation=True, per_caption=2)(captions("a rude cat", "a dog"))
    assert [row.get("dropped") or row["instruction"] for row in rows] == [
        "caption_flagged",
        "add a bow",
        "edit_flagged",
    ]
    assert chat.asked == {"a dog": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would rather not", "answer_is_not_of_the_form"),
        ("", "answer_is_not_of_the_form"),
        ('{"edits": [{"instruction": "add', "answer_is_not_of_the_form"),
        ('{"edits": [{"instruction": "add a hat"}]}', "answer_is_not_of_the_form"),
        ('{"edits": []}', "answer_is_empty"),
        (edits({"instruction": " "}), "empty_edit"),
        (edits({"edited_caption": "A cat."}), "caption_unchanged"),
        ({"message": {"role": "assistant", "content": None, "refusal": "I cannot"}}, "model_refused"),
        ({"message": {"role": "assistant", "content": '{"edits": ['}, "finish_reason": "length"}, "answer_cut_off"),
    ],
)
def test_an_answer_that_is_no_edit_is_dropped_with_its_reason(chat, writer, answer, reason):
    chat.answers["a cat"] = answer
    rows = writer()(captions("a cat", "a dog"))
    assert rows[0] == {"dropped": reason}
    assert rows[1]["source_caption"] == "a dog"


def test_completions_are_asked_for_with_delimiters_as_instruct_pix2pix_does(chat, writer):
    chat.answers["a cat\n##\n"] = ["add a hat\n%%\na cat with a hat", "make it wink\n%%\na cat winks\nEND"]
    rows = writer(per_caption=2, form="delimited")(captions("a cat"))
    assert [(row["instruction"], row["edited_caption"]) for row in rows] == [
        ("add a hat", "a cat with a hat"),
        ("make it wink", "a cat winks"),
    ]
    asked = chat.seen[0]
    wanted = {"n": 2, "stop": "\nEND", "temperature": 0.7, "max_tokens": 256, "frequency_penalty": 0.1}
    assert {name: asked[name] for name in wanted} == wanted
    chat.answers["a dog\n##\n"] = ["add a hat"]
    assert writer(form="delimited")(captions("a dog")) == [{"dropped": "answer_is_not_of_the_form"}]


def test_one_completion_that_is_not_of_the_form_costs_no_other(chat, writer):
    chat.answers["a cat\n##\n"] = ["add a hat", "make it wink\n%%\na cat winks"]
    rows = writer(per_caption=2, form="delimited")(captions("a cat"))
    assert [row.get("instruction") or row["dropped"] for row in rows] == ["make it wink", "answer_is_not_of_the_form"]


def test_the_same_edit_twice_is_kept_once(chat, writer):
    chat.answers["a cat"] = edits({}, {})
    rows = writer(per_caption=2)(captions("a cat"))
    assert [row.get("dropped") for row in rows] == [None, "duplicate"]


@pytest.mark.parametrize("failure", [(429, {"Retry-After": "0.3"}), (429, {}), (500, {}), (503, {}), "cut", "slow"])
def test_what_fails_for_a_while_is_asked_again_and_nothing_is_lost(chat, writer, monkeypatch, failure):
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.5)
    chat.failures["a cat"] = [failure, failure]
    started = time.monotonic()
    rows = writer()(captions("a cat", "a dog"))
    assert [row["source_caption"] for row in rows] == ["a cat", "a dog"]
    assert chat.asked == {"a cat": 3, "a dog": 1}
    if failure[1] == {"Retry-After": "0.3"}:
        assert time.monotonic() - started >= 0.6


def test_a_request_that_the_server_refuses_is_dropped_and_not_asked_again(chat, writer):
    chat.failures["a cat"] = [(400, {})]
    rows = writer()(captions("a cat", "a dog"))
    assert rows[0] == {"dropped": "request_refused"}
    assert chat.asked["a cat"] == 1


def test_an_endpoint_without_schemas_is_not_taken_for_a_refused_caption(chat, writer):
    chat.failures["a cat"] = [(400, {"message": "unsupported response_format"})]
    with pytest.raises(ValueError, match=r"knows no json_schema: set instructions\.structure"):
        writer()(captions("a cat"))


def test_one_caption_that_fails_for_good_costs_no_other_answer(chat, writer, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    chat.failures["a cat"] = [(500, {})] * 2
    write, rows = writer(), captions("an ant", "a cat", "a dog")
    with pytest.raises(openai.InternalServerError):
        write(rows)
    assert [row["source_caption"] for row in write([rows[0]]) + write([rows[2]])] == ["an ant", "a dog"]
    with pytest.raises(openai.InternalServerError):
        write([rows[1]])
    assert chat.asked == {"an ant": 1, "a cat": 2, "a dog": 1}


@pytest.mark.parametrize("status", [401, 404, 429, 503])
def test_an_endpoint_that_is_out_of_reach_stops_the_stage_and_drops_nothing(chat, writer, monkeypatch, status):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 1)
    chat.failures["a cat"] = [(status, {})] * 2
    write = writer()
    with pytest.raises(Stopped, match=f"the language model is out of reach .*{status}.*run again to go on"):
        write(captions("a cat", "a dog"))
    chat.failures.clear()
    assert [row["source_caption"] for row in write(captions("a cat", "a dog"))] == ["a cat", "a dog"]
    assert chat.asked["a dog"] == 1


def test_an_endpoint_that_nobody_serves_stops_the_stage(chat, writer, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(Stopped, match=r"out of reach \(Connection error"):
        writer()(captions("a cat"))


def test_as_many_requests_are_in_flight_as_a_batch_has_rows(chat, writer):
    chat.delay = 0.2
    names = [f"cat {number}" for number in range(8)]
    rows = writer(batch_size=4)(captions(*names))
    assert [row["source_caption"] for row in rows] == names
    assert chat.most_at_work == 4


def test_a_key_that_is_missing_is_said_so(writer, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        writer()


def test_examples_are_shown_before_the_caption(chat, tmp_path):
    conversation = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
    one_writer(tmp_path / "chat", examples=[{"messages": conversation}])([*captions("a cat")])
    assert [message["role"] for message in chat.seen[0]["messages"]] == ["system", "user", "assistant", "user"]
    assert chat.seen[0]["messages"][1:3] == conversation[1:]

    example = {"prompt": "a dog\n##\n", "completion": "add a bow\n%%\na dog with a bow\nEND"}
    one_writer(tmp_path / "text", examples=[example], form="delimited")(captions("a cat"))
    assert chat.seen[1]["prompt"] == "a dog\n##\nadd a bow\n%%\na dog with a bow\nEND\na cat\n##\n"


def test_an_edit_that_nothing_undoes_is_counted_with_the_rules_reason(chat, tmp_path):
    chat.answers["a cat"] = edits({"instruction": "change the background to a beach", "inverse_instruction": ""})
    counted = one_writer(tmp_path)(captions("a cat"))[-1]["counted"]
    assert {name: count for name, count in counted.items() if name.startswith("no_inverse")} == {
        "no_inverse_state_before_not_said": 1
    }
