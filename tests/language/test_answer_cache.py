"""What is asked is paid for once: across kills, restarts and several writers, on a disk and on S3."""

import multiprocessing
import os
import time

import llm_server
import pytest

from hive_ray.cluster.mapping import map_rows
from hive_ray.config import Instructions, Resources, Spending
from hive_ray.errors import Stopped
from hive_ray.language import answer_cache
from hive_ray.language.answer_cache import Budget, request_id, usage_counts
from hive_ray.pairs.instructions import InstructionWriter, build_request
from hive_ray.schemas import Counted

PRICES = {"prompt_price": 1000.0, "completion_price": 2000.0}
"""The server's 100 and 50 tokens an answer cost 20 cents."""


def writer(folder: str, batch_size: int = 2, **spending) -> InstructionWriter:
    resources = Resources(num_gpus=0, batch_size=batch_size)
    settings = Instructions(writer="openai", resources=resources, spending=Spending(**spending))
    return InstructionWriter(settings, folder)


def captions(*texts: str) -> list[dict]:
    return [{"caption_id": f"id of {text}", "caption": text} for text in texts]


def write_all(write: InstructionWriter, names) -> list[dict]:
    """What two captions after two become."""
    return [row for start in range(0, len(names), 2) for row in write(captions(*names[start : start + 2]))]


def counted(rows: list[dict]) -> list[dict]:
    return [row.values for row in rows if isinstance(row, Counted)]


def test_what_was_answered_is_not_asked_again_by_another_writer(chat, root):
    first = writer(root)(captions("a cat", "a dog"))
    assert writer(root)(captions("a cat", "a dog")) == first
    assert chat.asked == {"a cat": 1, "a dog": 1}
    assert len(writer(root)(captions("an owl"))) == 2
    assert chat.asked["an owl"] == 1


def test_another_request_has_another_name():
    row, settings = captions("a cat")[0], Instructions(writer="openai")
    names = {
        request_id(build_request(row, settings.model_copy(update=change), []))
        for change in ({}, {"llm": "other"}, {"per_caption": 2}, {"seed": 1}, {"structure": "json_object"})
    }
    assert len(names) == 5
    assert request_id(build_request(row, settings.model_copy(update={"rank_rate": 0.5}), [])) in names


def test_tokens_and_dollars_are_counted_and_count_the_same_from_kept_answers(chat, tmp_path):
    for _ in range(2):
        rows = writer(str(tmp_path), **PRICES)(captions("a cat"))
        assert counted(rows) == [pytest.approx({"prompt_tokens": 100, "completion_tokens": 50, "dollars": 0.2})]
    assert counted(writer(str(tmp_path))(captions("a cat"))) == [{"prompt_tokens": 100, "completion_tokens": 50}]


def test_a_batch_is_cheaper_and_an_answer_without_usage_is_known_to_be():
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    spending = Spending(**PRICES, batch_discount=0.25)
    assert usage_counts(usage, spending, batch=True)["dollars"] == pytest.approx(0.15)
    without = [None, 7, {}, {"prompt_tokens": 100}, usage | {"prompt_tokens": None}, usage | {"completion_tokens": 1e9}]
    for other in [*without, usage | {"prompt_tokens": -1}, usage | {"prompt_tokens": 10**400}]:
        assert usage_counts(other, spending) == {"answers_without_usage": 1}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\xff" + data,
                                    lambda data: b"[1]", lambda data: b'{"answer": null}', lambda data: b"[" * 9_000,
                                    lambda data: b'{"answer": {"error": {"message": "no"}}, "batch": false}',
                                    lambda data: b'{"answer": {"choices": []}, "batch": false}'])  # fmt: skip
def test_a_kept_answer_that_is_damaged_or_none_is_asked_for_again(chat, tmp_path, damage):
    first = writer(str(tmp_path))(captions("a cat", "a dog"))
    file = next(path for path in tmp_path.rglob("*.json") if "spent" not in path.parts)
    file.write_bytes(damage(file.read_bytes()))
    assert writer(str(tmp_path))(captions("a cat", "a dog")) == first
    assert sorted(chat.asked.values()) == [1, 2]
    assert writer(str(tmp_path))(captions("a cat", "a dog")) == first
    assert sorted(chat.asked.values()) == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "null", '"1.5 dollars"', "NaN", "-1", "1e999"])
def test_a_damaged_account_of_what_was_spent_stops_a_run_with_a_limit_by_name(tmp_path, content):
    (tmp_path / "spent").mkdir()
    (tmp_path / "spent" / "one.json").write_text(content)
    Budget(str(tmp_path), Spending(**PRICES)).exchange()
    with pytest.raises(Stopped, match=r"one\.json does not say what was spent .*: write the number of dollars"):
        Budget(str(tmp_path), Spending(most_dollars=1.0, **PRICES)).exchange()


def test_a_writer_whose_money_is_spent_stops_and_one_with_more_goes_on(chat, root):
    with pytest.raises(Stopped, match=r"\$0\.8 of \$0\.7 are spent .*run again with a higher limit"):
        write_all(writer(root, most_dollars=0.7, **PRICES), "abcdefgh")
    assert sum(chat.asked.values()) == 4
    with pytest.raises(Stopped):  # the limit holds for the run, not for the writer
        writer(root, most_dollars=0.7, **PRICES)(captions("e", "f"))
    assert len(write_all(writer(root, most_dollars=10.0, **PRICES), "abcdefgh")) == 16
    assert chat.asked == dict.fromkeys("abcdefgh", 1)


def test_what_other_writers_have_spent_counts(tmp_path):
    spending = Spending(most_dollars=1.0, **PRICES)
    one, other = Budget(str(tmp_path), spending), Budget(str(tmp_path), spending)
    one.spend(0.6)
    one.check()
    other.spend(0.6)
    with pytest.raises(Stopped, match=r"\$1\.2 of \$1"):
        other.check()


def test_what_is_spent_outlives_a_writer_that_is_killed_in_the_middle_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "STORE_INTERVAL_S", 0.0)
    spending = Spending(most_dollars=1.0, **PRICES)
    Budget(str(tmp_path), spending).spend(1.5)  # and is never heard of again
    after = Budget(str(tmp_path), spending)
    after.exchange()
    with pytest.raises(Stopped):
        after.check()


def test_a_limit_cannot_hold_where_the_endpoint_says_nothing_of_usage(chat, tmp_path, monkeypatch):
    monkeypatch.setitem(chat.answers, "a cat", {"message": {"role": "assistant", "content": "{}"}})
    monkeypatch.setattr(llm_server, "USAGE", None)
    with pytest.raises(Stopped, match="does not say what answers use"):
        writer(str(tmp_path), most_dollars=1.0, **PRICES)(captions("a cat"))


def test_a_folder_of_answers_that_fails_drops_no_caption(chat, tmp_path):
    (tmp_path / "answers").write_text("a file where a folder should be")
    with pytest.raises(Stopped, match="the folder of answers is out of reach"):
        map_rows(writer(str(tmp_path / "answers")), captions("a cat", "a dog"))


def test_a_limit_without_prices_is_refused():
    with pytest.raises(ValueError, match="most_dollars is set, but both prices are 0"):
        Spending(most_dollars=1.0)


def test_a_writer_that_is_killed_has_kept_every_answer_that_came(chat, tmp_path):
    chat.delay = 0.2
    names = [f"cat {number}" for number in range(12)]
    process = multiprocessing.get_context("fork").Process(target=_write, args=(str(tmp_path), names), daemon=True)
    process.start()
    while sum(chat.asked.values()) < 7:  # six answers have come, two requests are under way
        time.sleep(0.01)
    process.kill()
    process.join()
    before = dict(chat.asked)
    rows = writer(str(tmp_path))(captions(*names))
    assert [row["source_caption"] for row in rows if isinstance(row, dict)] == names
    assert [chat.asked[name] for name in names[:6]] == [before[name] for name in names[:6]] == [1] * 6
    assert sum(chat.asked.values()) <= 12 + 2


def _write(folder: str, names: list[str]) -> None:
    os.environ["no_proxy"] = "127.0.0.1"
    write_all(writer(folder), names)
