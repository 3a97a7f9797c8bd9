import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutate import mutated

from hive_ray.files.text_files import TextError, parse_json_lines
from hive_ray.reward.rankings import (
    Annotations,
    join_annotations,
    mean_agreement,
    preference_pairs,
    ranking_row,
    rankings_from_people,
)
from hive_ray.schemas import RANKINGS, Counted, Dropped, to_table
from hive_ray.statistics.agreement import RankingError, check_ranks

EDITS = [
    {"edit_id": name, "image": b"png", "seed": 1, "guidance_scale": 7.5, "image_guidance_scale": 1.5}
    for name in ("e0", "e1", "e2")
]
CANDIDATE = {
    "prompt_id": "p1",
    "instruction": "make it red",
    "source_caption": "a blue square",
    "edited_caption": "a red square",
    "source_image": b"png",
    "split": "rank",
    "edits": EDITS,
    "editor": "abc",
}


EDITS_OF = {"p1": ["e0", "e1", "e2"]}


def read(data: bytes, edits_of=EDITS_OF) -> Annotations:
    return join_annotations(parse_json_lines(data, "people.jsonl", objects=True), edits_of)


def said(*records) -> Annotations:
    """What Ann said of the prompt p1, unless a record says otherwise."""
    return read("\n".join(json.dumps({"prompt_id": "p1", "annotator": "ann"} | record) for record in records).encode())


def joined(*records):
    return rankings_from_people(CANDIDATE, said(*records).by_prompt)


def test_ties_imply_no_preference():
    assert preference_pairs([2, 1, 2]) == [(1, 0), (1, 2)]
    assert preference_pairs([1, 1]) == []


def test_a_full_order_implies_every_preference():
    assert sorted(preference_pairs([3, 1, 2])) == [(1, 0), (1, 2), (2, 0)]


@pytest.mark.parametrize("ranks", [[1, 2, 2, 4], [1, 2, 2, 3], [1, 1, 1, 1], [4, 3, 2, 1], [3, 1, 1, 3], [2, 1, 1, 2]])
def test_dense_and_competition_ranks_are_accepted(ranks):
    check_ranks(ranks, 4)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([1, 2], "2 ranks"),
        ([0, 1, 2], "not whole numbers from 1"),
        ([1.0, 2, 3], "not whole numbers from 1"),
        ([True, 2, 3], "not whole numbers from 1"),
        ([2, 3, 4], r"the best is 1: write \[1, 2, 3\]"),
        ([1, 2, 4], "leave gaps"),
        ([1, 3, 3], r"write \[1, 2, 2\]"),
    ],
)
def test_ranks_that_say_no_order_are_refused_with_what_to_do(ranks, words):
    with pytest.raises(RankingError, match=words):
        check_ranks(ranks, 3)


def test_agreement_is_a_mean_over_pairs_of_annotators_and_then_over_prompts():
    def row(prompt_id, ranks):
        return {"prompt_id": prompt_id, "ranks": ranks}

    same, reverse = [1, 2, 3], [3, 2, 1]
    three = [row("a", same), row("a", same), row("a", reverse)]  # 1, -1, -1
    two = [row("b", same), row("b", same)]  # 1
    assert mean_agreement([*three, *two, row("alone", same)]) == pytest.approx((-1 / 3 + 1) / 2)
    assert mean_agreement([row("alone", same)]) is None


def test_ranks_are_aligned_with_the_candidates_edits():
    assert joined({"ranks": [2, 1, 3]})[0]["ranks"] == [2, 1, 3]


def test_ranks_with_edit_ids_are_put_into_the_candidates_order():
    assert joined({"ranks": [1, 2, 2], "edit_ids": ["e2", "e0", "e1"]})[0]["ranks"] == [2, 2, 1]


def test_an_order_of_edit_ids_becomes_ranks_with_ties_in_inner_lists():
    assert joined({"order": ["e2", ["e0", "e1"]]})[0]["ranks"] == [2, 2, 1]


def test_rankings_satisfy_their_contract_and_have_one_id_a_person():
    rows = joined({"annotator": "ann", "ranks": [1, 2, 3]}, {"annotator": "bob", "ranks": [3, 2, 1]})
    assert to_table(rows, RANKINGS).num_rows == 2
    assert len({row["ranking_id"] for row in rows}) == 2
    assert rows[0] == ranking_row(CANDIDATE, "ann", [1, 2, 3])


def test_the_later_line_of_a_person_counts():
    rows = joined({"ranks": [1, 2, 3]}, {"ranks": [3, 2, 1]})
    assert [row["ranks"] for row in rows] == [[3, 2, 1]]


def test_a_line_that_its_person_corrected_later_is_counted_and_fits():
    found = said(
        {"ranks": [1, 2, 3]}, {"ranks": [3, 2, 1]}, {"ranks": [1, 2, 4]}, {"ranks": [1, 1, 1], "annotator": "bob"}
    )
    assert [(one.annotator, one.ranks) for one in found.by_prompt["p1"]] == [("ann", (3, 2, 1)), ("bob", (1, 1, 1))]
    assert found.dropped == {"ranked_again": 1, "not_an_order": 1}
    assert (found.lines, found.num_accepted) == (4, 3)
    assert found.samples["ranked_again"] == ["people.jsonl, line 1: ann ranked p1 again in people.jsonl, line 2"]


def test_a_prompt_nobody_ranked_has_no_rankings():
    assert rankings_from_people(CANDIDATE | {"prompt_id": "other"}, read(b"").by_prompt) == []


GOOD = {"prompt_id": "p1", "annotator": "ann", "ranks": [1, 2, 3]}


@pytest.mark.parametrize(
    ("bad", "reason", "words"),
    [
        ({"ranks": [1, 2]}, "not_an_order", "people.jsonl, line 1: prompt p1: 2 ranks"),
        ({"ranks": [1, 2, 4]}, "not_an_order", "line 1: prompt p1: ranks [1, 2, 4] leave gaps"),
        ({"ranks": [0, 1, 2]}, "not_an_order", "are not whole numbers from 1"),
        ({"ranks": [True, 2, 3]}, "not_an_order", "ranks is [True, 2, 3]; give a list of int"),
        ({"ranks": [1.0, 2, 3]}, "not_an_order", "give a list of int"),
        ({"ranks": [1, 2, 2**70]}, "not_an_order", "leave gaps"),
        ({"ranks": [1, 2, 10**4000]}, "not_an_order", "prompt p1: ranks [1, 2, 1000"),
        ({"ranks": [1, 2, float("nan")]}, "not_an_order", "give a list of int"),
        ({"ranks": [-1, -2, -3]}, "not_an_order", "are not whole numbers from 1"),
        ({"ranks": "first"}, "not_an_order", "ranks is 'first'; give a list of int"),
        ({"ranks": [1, 2, 3], "edit_ids": ["e0", "e1"]}, "other_edits", "rank each of them once"),
        ({"ranks": [1, 2, 3], "edit_ids": [0, 1, 2]}, "not_an_order", "edit_ids is [0, 1, 2]; give a list of str"),
        ({"order": ["e0", "e1", "e9"]}, "other_edits", "prompt p1: ranks the edits ['e0', 'e1', 'e9'], but"),
        ({"order": ["e0", "e1"]}, "other_edits", "rank each of them once"),
        ({"order": ["e0", "e1", "e1"]}, "other_edits", "rank each of them once"),
        ({"order": ["e0", ["e1", ["e2"]]]}, "not_an_order", "order is"),
        ({"order": []}, "not_an_order", "order is []; give a list of edit ids"),
        ({"order": "e0"}, "not_an_order", "order is 'e0'"),
        ({}, "order_missing", "the line has prompt_id, annotator; give either order or ranks"),
        ({"ranks": [1, 2, 3], "order": ["e0", "e1", "e2"]}, "order_missing", "give either order or ranks"),
        ({"ranks": [1, 2, 3], "annotator": ""}, "annotator_missing", "line 1: annotator is ''; give a text"),
        ({"ranks": [1, 2, 3], "annotator": 7}, "annotator_missing", "annotator is 7"),
        ({"ranks": [1, 2, 3], "prompt_id": None}, "prompt_id_missing", "prompt_id is None"),
        ({"ranks": [1, 2, 3], "prompt_id": ["p1"]}, "prompt_id_missing", "prompt_id is ['p1']"),
        ({"ranks": [1, 2, 3], "prompt_id": "p9"}, "unknown_prompt", "prompt 'p9' is none of the 1 candidates"),
        (b"{oops", "not_json", "line 1: not JSON"),
        (b"[1]", "not_an_object", "line 1: a JSON array"),
        (b'{"annotator": "\xff"}', "not_utf8", "line 1: byte 0xff is not UTF-8"),
    ],
)
def test_a_bad_line_is_left_out_and_the_others_are_kept(bad, reason, words):
    first = bad if isinstance(bad, bytes) else json.dumps({"prompt_id": "p1", "annotator": "bob"} | bad).encode()
    found = read(first + b"\n" + json.dumps(GOOD).encode())
    assert [one.annotator for one in found.by_prompt["p1"]] == ["ann"]
    assert (found.lines, found.num_accepted, found.dropped) == (2, 1, {reason: 1})
    [sample] = found.samples[reason]
    assert words in sample
    assert len(sample) <= 300


def test_every_line_left_out_is_a_row_of_the_account():
    found = said({"ranks": [1, 2, 3]}, *[{"prompt_id": f"x{number}"} for number in range(5)], {"ranks": [9, 9, 9]})
    rows = found.as_rows()
    assert [getattr(row, "reason", None) for row in rows].count("unknown_prompt") == 5
    assert sum(isinstance(row, Dropped) and row.sample is not None for row in rows) == 3 + 1
    assert rows[-1] == Counted({"lines": 7})
    assert str(found).startswith(
        "1 of 7 lines fit the candidates; left out: 1 not_an_order, 5 unknown_prompt\n  unknown"
    )


def test_line_separators_marks_and_half_an_emoji_in_annotations_are_text():
    record = GOOD | {"annotator": "Ann\u2028\x85", "remark": "\u2029"}
    lines = [json.dumps(record, ensure_ascii=False), json.dumps(GOOD | {"annotator": "Bob \ud83d"})]
    found = read(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [one.annotator for one in found.by_prompt["p1"]] == ["Ann\u2028\x85", "Bob \ufffd"]
    with pytest.raises(TextError, match=r"people\.jsonl is UTF-16 text"):
        read("\n".join(lines).encode("utf-16"))


def test_more_ranks_than_a_table_holds_are_one_bad_line():
    edit_ids = [f"e{number}" for number in range(200)]
    line = json.dumps({"prompt_id": "p", "annotator": "ann", "ranks": list(range(1, 201))}).encode()
    assert read(line, {"p": edit_ids}).dropped == {"not_an_order": 1}


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["p1", "e0", "e1"])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=2)),
    max_leaves=6,
)  # fmt: skip
KEYS = ("prompt_id", "annotator", "ranks", "order", "edit_ids")


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON).map(lambda record: GOOD | record), max_size=4))
def test_every_line_is_kept_or_in_the_account(records):
    accounted(read("\n".join(map(json.dumps, records)).encode()), len(records))


def test_annotations_in_mutated_files_are_kept_or_named():
    edits_of = {f"p{number}": [f"p{number}e{edit}" for edit in range(3)] for number in range(3)}
    lines = [
        json.dumps({"prompt_id": prompt_id, "annotator": who} | order)
        for prompt_id, (one, two, three) in edits_of.items()
        for who, order in (("ann", {"ranks": [1, 2, 2]}), ("bob", {"order": [one, [two, three]]}))
    ]
    lines.append(json.dumps({"prompt_id": "p0", "annotator": "Cem", "ranks": [3, 2, 1], "edit_ids": edits_of["p0"]}))
    read_whole = 0
    for content in mutated(["\n".join(lines).encode(), b"\xef\xbb\xbf" + "\r\n".join(lines).encode()]):
        try:
            found = read(content, edits_of)
        except TextError as error:
            assert "people.jsonl" in str(error)  # noqa: PT017
            continue
        read_whole += 1
        lines_in = sum(bool(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        accounted(found, lines_in)
    assert read_whole > 0


def accounted(found: Annotations, lines: int) -> None:
    """Each line is kept or left out by name, and what is kept are rankings."""
    kept = [one for annotations in found.by_prompt.values() for one in annotations]
    rows = found.as_rows()
    assert lines == found.lines == len(kept) + sum(isinstance(row, Dropped) for row in rows)
    for one in kept:
        check_ranks(list(one.ranks), 3)
        one.annotator.encode()
    for row in rows[:-1]:
        assert row.reason
        assert row.sample is None or row.sample.encode()
