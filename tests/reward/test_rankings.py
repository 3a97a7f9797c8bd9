import json

import pytest

from hive_ray.agreement import RankingError, check_ranks
from hive_ray.reward.rankings import (
    mean_agreement,
    parse_annotations,
    preference_pairs,
    ranking_row,
    rankings_from_people,
)
from hive_ray.schemas import RANKINGS, to_table

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


def joined(*records):
    lines = [json.dumps({"prompt_id": "p1", "annotator": "ann"} | record) for record in records]
    return rankings_from_people(CANDIDATE, parse_annotations(lines, "people.jsonl"))


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


def test_a_prompt_nobody_ranked_has_no_rankings():
    assert rankings_from_people(CANDIDATE | {"prompt_id": "other"}, parse_annotations([], "people.jsonl")) == []


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"ranks": [1, 2]}, "people.jsonl, line 1, prompt p1: 2 ranks"),
        ({"ranks": [1, 2, 4]}, "people.jsonl, line 1, prompt p1: .*leave gaps"),
        ({"order": ["e0", "e1", "e9"]}, "line 1, prompt p1: ranks the edits"),
        ({"order": ["e0", "e1", "e1"]}, "rank each of them once"),
        ({"ranks": [1, 2, 3], "edit_ids": ["e0", "e1"]}, "rank each of them once"),
        ({"order": []}, "line 1: order is"),
        ({"ranks": "first"}, "line 1: ranks is 'first'; give a list of int"),
        ({}, "give one of order and ranks"),
        ({"ranks": [1, 2, 3], "annotator": ""}, "line 1: annotator is ''"),
    ],
)
def test_an_error_in_a_file_names_its_line(record, words):
    with pytest.raises(RankingError, match=words):
        joined(record)


def test_lines_that_are_not_json_objects_are_named():
    with pytest.raises(RankingError, match="line 2: not JSON"):
        parse_annotations(["", "{oops"], "people.jsonl")
    with pytest.raises(RankingError, match="line 1: a list"):
        parse_annotations(["[1]"], "people.jsonl")
