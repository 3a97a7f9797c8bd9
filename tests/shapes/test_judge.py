from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from hive_ray.images import encode
from hive_ray.schemas import CANDIDATES, RANKINGS, to_table
from hive_ray.shapes.annotator import SimulatedAnnotator, rank_candidates, utility
from hive_ray.shapes.edits import apply_edit, write_edits
from hive_ray.shapes.judge import Judgement, adherence, intended_scene, judge
from hive_ray.shapes.scene_reader import read_scene
from hive_ray.shapes.scenes import (
    BACKGROUNDS,
    Description,
    Place,
    Scene,
    Thing,
    draw,
    parse_caption,
    place_things,
    random_description,
)

CIRCLE, SQUARE, STAR = (
    Thing("circle", "red", "small"),
    Thing("square", "blue", "large"),
    Thing("star", "green", "small"),
)
LEFT, RIGHT_SIDE = Place(14, 20, 8), Place(46, 42, 11)
SOURCE = Scene(Description((CIRCLE, SQUARE), "white"), (LEFT, RIGHT_SIDE))


def shown(things, places, background="white"):
    return draw(Scene(Description(tuple(things), background), tuple(places)))


def verdict(picture, things, background="white"):
    wanted = Description(tuple(things), background)
    return judge(draw(SOURCE), picture, SOURCE.description.caption, wanted.caption)


def degraded(pixels, rng, blur=1.0, noise=6.0):
    soft = ndimage.gaussian_filter(pixels.astype(float), (blur, blur, 0))
    return (soft + rng.normal(0, noise, pixels.shape)).clip(0, 255).astype(np.uint8)


PURPLE, RING = replace(CIRCLE, colour="purple"), replace(CIRCLE, shape="ring")
BIG, GROUND = replace(CIRCLE, size="large"), "mint"
EDITS = {
    "recolour": ((PURPLE, SQUARE), (LEFT, RIGHT_SIDE), "white"),
    "reshape": ((RING, SQUARE), (LEFT, RIGHT_SIDE), "white"),
    "resize": ((BIG, SQUARE), (replace(LEFT, radius=11), RIGHT_SIDE), "white"),
    "remove": ((SQUARE,), (RIGHT_SIDE,), "white"),
    "add": ((CIRCLE, SQUARE, STAR), (LEFT, RIGHT_SIDE, Place(55, 12, 8)), "white"),
    "background": ((CIRCLE, SQUARE), (LEFT, RIGHT_SIDE), GROUND),
    "swap": ((SQUARE, CIRCLE), (replace(LEFT, x=14, radius=11), replace(RIGHT_SIDE, radius=8)), "white"),
}


def test_a_drawn_scene_is_read_as_it_is():
    background, found = read_scene(draw(SOURCE))
    assert background == "white"
    assert [(thing.shape, thing.colour, thing.size) for thing in found] == [
        ("circle", "red", "small"),
        ("square", "blue", "large"),
    ]
    for thing, where in zip(found, SOURCE.places, strict=True):
        assert (thing.x, thing.y, thing.radius) == pytest.approx((where.x, where.y, where.radius), abs=0.6)


def test_soft_edges_make_no_things_of_their_own():
    rng = np.random.default_rng(0)
    for _ in range(30):
        scene = place_things(random_description(rng), rng)
        background, found = read_scene(degraded(draw(scene), rng))
        assert background == scene.description.background
        assert [(t.shape, t.colour, t.size) for t in found] == [
            (t.shape, t.colour, t.size) for t in scene.description.things
        ]


def test_an_empty_picture_has_no_things():
    plain = np.full((64, 64, 3), BACKGROUNDS["navy"], dtype=np.uint8)
    assert read_scene(plain) == ("navy", [])


def test_a_picture_of_another_size_is_refused_in_reading():
    with pytest.raises(ValueError, match=r"\(32, 32, 3\).*\(64, 64, 3\)"):
        read_scene(np.zeros((32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", EDITS)
def test_the_edit_that_was_asked_is_right_clean_and_degraded(kind):
    things, places, background = EDITS[kind]
    picture = shown(things, places, background)
    for answer in (picture, degraded(picture, np.random.default_rng(0))):
        given = verdict(answer, things, background)
        assert given.right
        assert given.followed > 0.8
        assert given.preserved > 0.8


@pytest.mark.parametrize("kind", EDITS)
def test_the_unchanged_source_did_not_follow_but_preserved(kind):
    things, _, background = EDITS[kind]
    given = verdict(draw(SOURCE), things, background)
    assert given.followed < 0.3
    assert given.preserved > 0.8 or kind == "swap"


@pytest.mark.parametrize("asked", EDITS)
@pytest.mark.parametrize("done", EDITS)
def test_another_edit_than_the_one_asked_is_wrong(asked, done):
    things, places, background = EDITS[done]
    wanted, _, ground = EDITS[asked]
    assert verdict(shown(things, places, background), wanted, ground).right == (asked == done)


def test_an_edit_that_moves_the_other_thing_far_did_not_preserve():
    moved = replace(RIGHT_SIDE, y=24.0)
    given = verdict(shown((PURPLE, SQUARE), (LEFT, moved)), (PURPLE, SQUARE))
    assert given.followed > 0.8
    assert given.preserved < 0.5


def test_a_move_of_two_pixels_costs_nothing():
    moved = replace(RIGHT_SIDE, y=RIGHT_SIDE.y - 2)
    assert verdict(shown((PURPLE, SQUARE), (LEFT, moved)), (PURPLE, SQUARE)).preserved > 0.95


def test_a_thing_that_nobody_asked_for_is_not_preserving():
    picture = shown((PURPLE, SQUARE, STAR), (LEFT, RIGHT_SIDE, Place(55, 12, 8)))
    assert verdict(picture, (PURPLE, SQUARE)).preserved < 0.5


def test_a_thing_added_on_the_wrong_side_did_not_follow():
    picture = shown((STAR, CIRCLE, SQUARE), (Place(9, 50, 7.5), replace(LEFT, x=24), RIGHT_SIDE))
    assert verdict(picture, (CIRCLE, SQUARE, STAR)).followed < 0.3


def test_a_new_thing_may_be_anywhere_of_its_order():
    for where in (Place(55, 12, 8), Place(30, 12, 8)):
        middle = (CIRCLE, STAR, SQUARE) if where.x < 46 else (CIRCLE, SQUARE, STAR)
        places = (LEFT, where, RIGHT_SIDE) if where.x < 46 else (LEFT, RIGHT_SIDE, where)
        assert verdict(shown(middle, places), middle).right


@pytest.mark.parametrize("kind", EDITS)
def test_the_drawing_of_the_intended_scene_is_right(kind):
    things, _, background = EDITS[kind]
    wanted = Description(things, background)
    scene = intended_scene(draw(SOURCE), SOURCE.description.caption, wanted.caption)
    assert scene.description == wanted
    assert verdict(draw(scene), things, background).right


def test_truths_are_right_and_random_scenes_wrong_over_many_edits():
    rng = np.random.default_rng(7)
    right, chance = [], []
    for _ in range(60):
        scene = place_things(random_description(rng), rng)
        edit = write_edits(scene.description.caption, 1, rng)[0]
        truth = apply_edit(scene, edit.edited, rng)
        if truth is None:  # no room
            continue
        captions = scene.description.caption, edit.edited.caption
        source = degraded(draw(scene), rng)
        right.append(judge(source, degraded(draw(truth), rng), *captions).right)
        chance.append(judge(source, draw(place_things(random_description(rng), rng)), *captions).right)
    assert np.mean(right) >= 0.95
    assert not any(chance)


def test_adherence_is_one_for_the_caption_s_own_picture_and_low_for_another_s():
    assert adherence(draw(SOURCE), SOURCE.description.caption) == pytest.approx(1)
    assert adherence(draw(SOURCE), "a large pink star on a navy background") == pytest.approx(0)
    mirrored = Description((SQUARE, CIRCLE), "white")
    assert adherence(draw(SOURCE), mirrored.caption) < 0.3  # the order is wrong
    assert adherence(draw(SOURCE), Description((PURPLE, SQUARE), "white").caption) == pytest.approx(0.5)  # one of two


def candidates_row(pictures):
    edits = [
        {
            "edit_id": f"e{i}",
            "image": encode(p),
            "seed": i,
            "guidance_scale": 3.0,
            "image_guidance_scale": 1.4,
        }
        for i, p in enumerate(pictures)
    ]
    return {
        "prompt_id": "p", "instruction": "make the circle purple", "source_image": encode(draw(SOURCE)),
        "source_caption": SOURCE.description.caption,
        "edited_caption": Description((PURPLE, SQUARE), "white").caption,
        "split": "rank", "edits": edits, "editor": "sft",
    }  # fmt: skip


PICTURES = (
    draw(SOURCE),
    shown((PURPLE, SQUARE), (LEFT, RIGHT_SIDE)),
    shown((STAR,), (Place(32, 50, 8),), "navy"),
)


def test_an_annotator_without_noise_orders_right_before_unchanged_before_another_scene():
    assert SimulatedAnnotator(noise=0.0)(candidates_row(PICTURES)) == [2, 1, 3]


def test_equal_edits_tie_without_noise():
    assert SimulatedAnnotator(noise=0.0)(candidates_row((PICTURES[1], PICTURES[0], PICTURES[1]))) == [1, 2, 1]


def test_an_annotator_repeats_itself_and_annotators_differ():
    row = candidates_row((PICTURES[0],) * 6)
    first, second = SimulatedAnnotator(0, seed=1, noise=0.3), SimulatedAnnotator(1, seed=1, noise=0.3)
    assert first(row) == first(row)
    assert first(row) != second(row)


def test_what_an_edit_is_called_changes_nothing_in_what_is_thought_of_it():
    row = candidates_row((PICTURES[0],) * 6)
    renamed = row | {"editor": "other", "edits": [edit | {"edit_id": f"other {edit['seed']}"} for edit in row["edits"]]}
    assert SimulatedAnnotator(noise=0.3)(renamed) == SimulatedAnnotator(noise=0.3)(row)


def test_ranked_candidates_are_rows_of_the_rankings_table():
    row = candidates_row(PICTURES)
    assert to_table([row], CANDIDATES).num_rows == 1
    ranked = rank_candidates([row], [SimulatedAnnotator(0), SimulatedAnnotator(1)])
    table = to_table(ranked, RANKINGS)
    assert table["annotator"].to_pylist() == ["simulated-0", "simulated-1"]
    assert len(set(table["ranking_id"].to_pylist())) == 2


def test_following_without_preserving_is_worth_little():
    assert utility(Judgement(1, 1)) == 1
    assert utility(Judgement(1, 0)) == utility(Judgement(0, 1)) == 0.25


def test_a_caption_of_another_domain_is_refused():
    with pytest.raises(ValueError, match="not a scene of shapes"):
        judge(draw(SOURCE), draw(SOURCE), "a cat", SOURCE.description.caption)
    assert parse_caption(SOURCE.description.caption) == SOURCE.description
