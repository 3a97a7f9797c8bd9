"""The writer over real HTTP, with the real client, against a server that misbehaves on purpose."""

import itertools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import hypothesis
import openai
import pytest
from hypothesis import strategies
from llm_server import CHATTY, EDIT, PAGE, REFUSING, USELESS, edits, refusal, spoken
from mutate import mutated

from hive_ray.config import Instructions, Resources, Spending
from hive_ray.errors import Stopped
from hive_ray.language import endpoint
from hive_ray.language.answer_cache import request_id, usage_counts
from hive_ray.language.endpoint import NoAnswerError, read_answer
from hive_ray.language.openai_client import EndpointError
from hive_ray.pairs import instructions
from hive_ray.pairs.instructions import AnswerFormatError, InstructionWriter, build_request, parse_answer, read_edits
from hive_ray.schemas import INSTRUCTIONS, Counted, Dropped, Rows, to_table


@pytest.fixture
def writer(tmp_path):
    """A maker of writers, each with a folder of answers of its own; what they count is left out."""
    number = itertools.count()

    def make(**settings) -> Callable[[Rows], Rows]:
        write = one_writer(tmp_path / str(next(number)), **settings)
        return lambda rows: [row for row in write(rows) if not isinstance(row, Counted)]

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
    assert [row.reason if isinstance(row, Dropped) else row["instruction"] for row in rows] == [
        "caption_flagged",
        "add a bow",
        "edit_flagged",
    ]
    assert chat.asked == {"a dog": 1}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would rather not", "answer_is_not_of_the_form"),
        ("", "answer_is_empty"),
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
    assert rows[0].reason == reason
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
    dropped = [Dropped("answer_is_not_of_the_form", sample="add a hat")]
    assert writer(form="delimited")(captions("a dog")) == dropped
    chat.answers["an owl\n##\n"] = ["", None]
    rows = writer(form="delimited", per_caption=2)(captions("an owl"))
    assert [row.reason for row in rows] == ["answer_is_empty"] * 2


def test_one_completion_that_is_not_of_the_form_costs_no_other(chat, writer):
    chat.answers["a cat\n##\n"] = ["add a hat", "make it wink\n%%\na cat winks"]
    rows = writer(per_caption=2, form="delimited")(captions("a cat"))
    assert rows[0]["instruction"] == "make it wink"
    assert [row.reason for row in rows[1:]] == ["answer_is_not_of_the_form"]


def test_the_same_edit_twice_is_kept_once(chat, writer):
    chat.answers["a cat"] = edits({}, {})
    rows = writer(per_caption=2)(captions("a cat"))
    assert [getattr(row, "reason", None) for row in rows] == [None, "duplicate"]


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
    assert rows[0] == Dropped("request_refused", sample="Error code: 400 - no")
    assert chat.asked["a cat"] == 1


@pytest.mark.parametrize(
    "message",
    [
        "unsupported response_format",
        "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
        "Structured outputs are not supported by this backend",
        "guided_json needs xgrammar",
        "This model has no JSON mode",
    ],
)
def test_an_endpoint_without_schemas_is_not_taken_for_a_refused_caption(chat, writer, message):
    chat.failures["a cat"] = [(400, {"message": message})]
    wanted = (
        f"does not support json_schema: set instructions.structure to json_object or none (Error code: 400 - {message})"
    )
    with pytest.raises(Stopped, match=re.escape(wanted)):
        writer()(captions("a cat"))


def test_no_structure_is_asked_for_where_none_is_wanted(chat, writer):
    assert writer(structure="none")(captions("a cat"))[0]["instruction"] == "add a hat"
    assert "response_format" not in chat.seen[0]


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


@pytest.mark.parametrize("model", CHATTY)
def test_the_json_that_is_in_an_answer_is_read(chat, writer, model):
    row = writer(llm=model)(captions("a cat"))[0]
    assert (row["instruction"].removesuffix(" \ufffd"), row["edited_caption"].split()) == (
        "add a hat",
        ["a", "cat", "with", "a", "hat"],
    )
    assert ("\ufffd" in row["instruction"]) == (model == "surrogate")
    to_table([row], INSTRUCTIONS)


def test_edits_one_after_another_are_one_list_and_those_of_a_cut_off_answer_are_kept(chat, writer):
    one, other = EDIT, EDIT | {"instruction": "make it wink"}
    chat.answers["a cat"] = f"{json.dumps(one)},\n{json.dumps(other)}"
    chat.answers["a dog"] = f"```json\n{json.dumps(one)}\n```\n```json\n{json.dumps(other)}\n```"
    cut = {"role": "assistant", "content": edits(one, other, {"instruction": "be"})[:-60]}
    chat.answers["an owl"] = {"message": cut, "finish_reason": "length"}
    rows = writer(per_caption=3)(captions("a cat", "a dog", "an owl"))
    assert [row["instruction"] for row in rows] == ["add a hat", "make it wink"] * 3


def test_what_is_no_text_is_no_edit_and_costs_no_other_one(chat, writer):
    chat.answers["a cat"] = json.dumps([EDIT, EDIT | {"instruction": None}, 7, EDIT | {"edited_caption": ["x"]}])
    rows = writer(per_caption=4)(captions("a cat"))
    assert rows[0]["instruction"] == "add a hat"
    assert [row.reason for row in rows[1:]] == ["empty_edit"] * 3
    chat.answers["a dog"] = json.dumps([None, EDIT | {"instruction": 7}, EDIT])
    assert [row["instruction"] for row in writer(per_caption=1)(captions("a dog"))] == ["add a hat"]


@pytest.mark.parametrize("model", USELESS)
def test_each_caption_without_an_edit_is_counted_and_shown(chat, writer, model):
    reason, answer = USELESS[model]
    rows = writer(llm=model)(captions("a cat", "a dog"))
    assert [row.reason for row in rows] == [reason] * 2
    assert all(len(row.sample) <= 300 for row in rows)
    if model in ("html", "prose", "error200"):
        assert rows[0].sample[:20] in f"{PAGE} {json.dumps(answer())}"


def test_a_caption_without_an_answer_is_asked_for_again_by_the_next_run_and_a_paid_answer_is_not(
    chat, tmp_path, monkeypatch
):
    monkeypatch.setattr(endpoint, "RETRY_WAITS_S", (0.0, 0.0))
    for model, times in [("html", 2), ("error200", 2 * 3), ("emptychoices", 2), ("paidforempty", 1), ("prose", 1)]:
        for _ in range(2):
            one_writer(tmp_path, llm=model)(captions(model))
        assert chat.asked[model] == times


def test_an_error_that_comes_as_an_answer_is_asked_again_and_costs_nothing(chat, writer, monkeypatch):
    monkeypatch.setattr(endpoint, "RETRY_WAITS_S", (0.0, 0.0))
    chat.failures["a cat"] = [(200, {}), (200, {})]
    assert writer()(captions("a cat"))[0]["instruction"] == "add a hat"
    assert chat.asked["a cat"] == 3


@pytest.mark.parametrize("model", REFUSING)
def test_what_a_model_refuses_is_left_out_and_answers_are_found_again(chat, tmp_path, capsys, model):
    status, _, names = REFUSING[model]
    rows = one_writer(tmp_path, llm=model)(captions("a cat", "a dog", "an owl", "an ant", "a bee"))
    assert sum(isinstance(row, dict) for row in rows) == 5
    assert not names & chat.seen[-1].keys()
    said = capsys.readouterr().out
    assert said.count("leave it out from here on") == 1
    assert f"the model does not accept {' and '.join(sorted(names))} (Error code: {status} - " in said
    asked = sum(chat.asked.values())
    assert (
        one_writer(tmp_path, llm=model)(captions("a cat", "a dog"))
        == [row for row in rows if isinstance(row, Counted) or row["source_caption"] in ("a cat", "a dog")][:4]
    )
    assert sum(chat.asked.values()) == asked


def test_a_temperature_or_a_seed_can_be_left_out_by_the_settings(chat, tmp_path):
    one_writer(tmp_path, temperature=None, send_seed=False)(captions("a cat"))
    assert not {"temperature", "seed"} & chat.seen[0].keys()
    one_writer(tmp_path, temperature=None)(captions("a cat"))  # is found
    one_writer(tmp_path, temperature=0.2)(captions("a cat"))
    assert [request.get("temperature") for request in chat.seen] == [None, 0.2]


def test_requests_have_the_ids_that_they_always_had():
    row = captions("a cat")[0]
    ids = [
        request_id(build_request(row, Instructions(writer="openai", **settings), []))
        for settings in ({}, {"structure": "json_object", "seed": 3}, {"form": "delimited"})
    ]
    assert ids == ["88b59f13c1c2d863", "4a7ffe8c4d8d6bba", "d20e30dd96298702"]


@pytest.mark.parametrize("error", [{"code": "model_not_found"}, {"param": "model"}])
def test_a_model_that_is_refused_stops_the_stage_at_once(chat, writer, error):
    chat.refused["gpt-9"] = (400, refusal("Invalid model name passed in model=gpt-9", **error))
    with pytest.raises(Stopped, match=r"refuses the model 'gpt-9': Error code: 400 - Invalid model name"):
        writer(llm="gpt-9")(captions("a cat"))


def test_a_quota_that_is_used_up_stops_in_the_endpoints_words_whatever_its_status(chat, writer, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    for status in (400, 402, 429):
        chat.refused["m"] = (status, refusal("You exceeded your current quota", code="insufficient_quota"))
        with pytest.raises(Stopped, match=rf"{status} - You exceeded your current quota"):
            writer(llm="m")(captions("a cat"))


def test_an_endpoint_that_fails_again_and_again_stops_the_stage(chat, writer, monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    names = [f"cat {number}" for number in range(8)]
    chat.failures.update({name: [(500, {})] for name in names})
    with pytest.raises(Stopped, match="500 - no, 8 times in a row"):
        writer(batch_size=8)(captions(*names))


@pytest.mark.parametrize(
    ("answer", "seen"), [({"results": [{"flagged": True}] * 2}, "results"), ({"results": None}, "null"), (PAGE, "Sign")]
)
def test_a_moderation_that_says_nothing_of_the_texts_stops_the_stage(chat, writer, answer, seen):
    chat.moderated = answer
    with pytest.raises(Stopped, match=f"moderation endpoint returned .*{seen}.*unset instructions.moderation"):
        writer(moderation=True)(captions("a cat"))


VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.floats() | strategies.integers() | strategies.text(),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(
        strategies.sampled_from([*EDIT, "edits", "x"]) | strategies.text(max_size=3), inner
    ),
    max_leaves=12,
)  # fmt: skip
TEXTS = strategies.text(alphabet='{}[]",:\\ \n`abe\ud83d0-', max_size=60) | strategies.text(
    strategies.characters(codec=None)
)
EXAMPLES = hypothesis.settings(derandomize=True, deadline=None, max_examples=200)


def edits_or_a_named_error(text: str) -> None:
    try:
        edits = parse_answer(text)
    except AnswerFormatError:
        return
    for edit in edits:
        assert all(isinstance(value, str) for value in vars(edit).values())
        str(vars(edit)).encode()
        "".join(vars(edit).values()).encode()


@EXAMPLES
@hypothesis.given(TEXTS, VALUES, TEXTS)
def test_any_text_and_any_json_value_is_edits_or_the_named_error(before, value, after):
    edits_or_a_named_error(before + after)
    edits_or_a_named_error(before + json.dumps(value) + after)


@EXAMPLES
@hypothesis.given(VALUES)
def test_any_json_value_as_an_answer_is_edits_or_drops(value):
    answers = [value, {"choices": value}, {"choices": [value]}, {"choices": [{"message": value}]}]
    answers += [spoken(value), spoken(None, reasoning=value), spoken("", usage=value)]
    for answer in answers:
        try:
            answer = read_answer(json.dumps(answer).encode())
        except NoAnswerError:
            continue
        for form in ("chat", "delimited"):
            edits, dropped = read_edits(answer, form)
            assert edits or dropped
            assert all(row.row is None and row.sample is not None for row in dropped)
        usage_counts(answer.get("usage"), Spending(prompt_price=1.0))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 50_000 + "]" * 50_000, '"\\"' * 50_000,
                                  "{" * 20_000 + ",]" * 20_000, '{"edits": ' + "9" * 5_000 + "}", '[{"a": 1e999,}]',
                                  "[" + "[1,]," * 20_000, '{"edits": [' + '"\\ud800",' * 9_000])  # fmt: skip
def test_text_that_is_deep_or_long_is_the_named_error_soon(text):
    started = time.monotonic()
    with pytest.raises(AnswerFormatError):
        parse_answer(text)
    assert time.monotonic() - started < 5


def test_mutated_answers_are_edits_or_the_named_error_and_each_caption_is_in_an_account():
    good = edits({}, {"instruction": "make it wink", "edited_caption": "a cät winks"})
    answers = [answer(good) for answer in CHATTY.values()]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    inputs = [*(text for text in texts if isinstance(text, str)), *map(json.dumps, answers)]
    kept = dropped = 0
    for data in mutated([text.encode() for text in inputs]):
        text = data.decode(errors="replace")
        edits_or_a_named_error(text)
        for body in (data, json.dumps(spoken(text)).encode()):
            try:
                made, left_out = read_edits(read_answer(body))
            except NoAnswerError as error:
                made, left_out = [], [error.dropped]
            assert made or left_out
            kept, dropped = kept + bool(made), dropped + (not made)
    assert kept > dropped / 9
    print(f"{kept} answers with edits, {dropped} named drops")


@pytest.mark.parametrize(("key", "message"), [
    (None, r"OPENAI_API_KEY is not set; .* \(for an endpoint that needs no key, set any text\)"),
    (" \n", "OPENAI_API_KEY is empty"),
    ("sk-a b", "OPENAI_API_KEY holds a blank"),
    ("sk-sécret", "no ASCII"),
])  # fmt: skip
def test_a_key_that_is_missing_or_none_is_said_so(chat, writer, monkeypatch, key, message):
    monkeypatch.delenv("OPENAI_API_KEY") if key is None else monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(EndpointError, match=message) as error:
        writer()
    assert "cret" not in str(error.value)


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
    counted = one_writer(tmp_path)(captions("a cat"))[-1].values
    assert {name: count for name, count in counted.items() if name.startswith("no_inverse")} == {
        "no_inverse_state_before_not_said": 1
    }
