import numpy as np
import pytest

from hive_ray.shapes.edits import KINDS, apply_edit, vocabulary_texts, write_edits
from hive_ray.shapes.scenes import CaptionError, is_apart, parse_caption, place_things, random_description

TWO = "a small red circle and a large blue square on a white background"


def edits(count=400, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        source = random_description(rng)
        for edit in write_edits(source.caption, 1, rng):
            yield source, edit


def test_every_kind_of_edit_is_written():
    assert {edit.kind for _, edit in edits()} == set(KINDS)


def test_an_edit_changes_the_description_and_leads_to_one_that_can_be_parsed():
    for source, edit in edits():
        assert edit.edited != source
        assert parse_caption(edit.edited.caption) == edit.edited


def test_each_kind_changes_what_its_name_says_and_nothing_else():
    for source, edit in edits():
        before, after = source.things, edit.edited.things
        if edit.kind == "background":
            assert before == after
            continue
        assert edit.edited.background == source.background
        if edit.kind == "add":
            assert len(after) == len(before) + 1
            assert set(before) < set(after)
        elif edit.kind == "remove":
            assert len(after) == len(before) - 1
            assert set(after) < set(before)
        elif edit.kind == "swap":
            assert sorted(before) == sorted(after)
            assert sum(a != b for a, b in zip(before, after, strict=True)) == 2
        else:
            attribute = {"recolour": "colour", "reshape": "shape", "resize": "size"}[edit.kind]
            (changed,) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            differ = [
                name for name in ("shape", "colour", "size") if getattr(changed[0], name) != getattr(changed[1], name)
            ]
            assert differ == [attribute]


def test_the_edits_of_a_caption_are_worded_differently():
    written = write_edits(TWO, 12, np.random.default_rng(0))
    assert len({edit.instruction for edit in written}) == 12


def test_the_same_generator_writes_the_same_edits():
    assert write_edits(TWO, 5, np.random.default_rng(3)) == write_edits(TWO, 5, np.random.default_rng(3))


def test_the_inverse_instruction_of_a_swap_is_a_swap_and_of_a_removal_an_addition():
    for source, edit in edits():
        first = edit.inverse_instruction.split()[0]
        if edit.kind == "swap":
            assert first in ("swap", "exchange")
        if edit.kind == "remove":
            (gone,) = set(source.things) - set(edit.edited.things)
            assert first in ("add", "put", "draw")
            assert gone.phrase in edit.inverse_instruction


def test_the_only_thing_is_never_removed_and_a_fourth_never_added():
    rng = np.random.default_rng(0)
    one = "a small red circle on a white background"
    three = "a small red circle, a small blue square and a small green star on a white background"
    assert "remove" not in {edit.kind for edit in write_edits(one, 20, rng)}
    assert "add" not in {edit.kind for edit in write_edits(three, 20, rng)}


def test_a_caption_of_another_domain_is_refused():
    with pytest.raises(CaptionError):
        write_edits("a photo of a cat", 1, np.random.default_rng(0))


def test_all_words_covers_every_word_of_written_edits():
    known = {word.strip(",") for text in vocabulary_texts() for word in text.split()}
    for source, edit in edits():
        for text in (source.caption, edit.instruction, edit.inverse_instruction):
            assert {word.strip(",") for word in text.split()} <= known


def test_carrying_out_an_edit_leaves_what_was_not_asked_for_where_it_was():
    rng = np.random.default_rng(0)
    for source, edit in edits(100):
        scene = place_things(source, rng)
        after = apply_edit(scene, edit.edited, rng)
        if after is None:  # no room
            continue
        assert after.description == edit.edited
        assert is_apart(after.places)
        where = dict(zip(after.description.things, after.places, strict=True))
        for thing, before in zip(source.things, scene.places, strict=True):
            if edit.kind != "swap" and thing in where:
                assert where[thing] == before
