from hive_ray.config import shapes
from hive_ray.pairs.cycle import twin
from hive_ray.pairs.filtering import drop_reason, keep_best, least_similarities


def pair(name, direction, image=0.9):
    return {
        "pair_id": name, "clip_image": image, "clip_direction": direction, "clip_source_text": 0.5,
        "clip_edited_text": 0.6,
    }  # fmt: skip


LEAST = {"clip_image": 0.7, "clip_direction": 0.2}


def test_a_pair_below_a_limit_is_dropped_with_column_and_limit():
    assert drop_reason(pair("a", 0.1), LEAST) == "clip_direction_below_0.2"
    assert drop_reason(pair("a", 0.5, image=0.69), LEAST) == "clip_image_below_0.7"
    assert drop_reason(pair("a", 0.2, image=0.7), LEAST) is None


def test_the_best_by_direction_are_kept_whatever_the_order():
    pairs = [pair("a", 0.3), pair("b", 0.9), pair("c", 0.1), pair("d", 0.3)]
    for order in (pairs, pairs[::-1]):
        kept, reasons = keep_best(order, LEAST, keep=2)
        assert [one["pair_id"] for one in kept] == ["b", "a"]
        assert sorted(reasons) == ["clip_direction_below_0.2", "not_among_the_best"]


def test_every_limit_of_the_settings_is_a_column():
    assert set(least_similarities(shapes().pairs)) <= set(pair("a", 0.5))


def test_a_twin_goes_back_and_a_twin_of_a_twin_forth_again():
    forth = pair("a", 0.4) | {
        "instruction": "make it blue", "source_caption": "red", "edited_caption": "blue", "source_image": b"r",
        "edited_image": b"b", "origin": "generated",
    }  # fmt: skip
    back = twin(forth, "make it red")
    assert (back["source_image"], back["edited_image"], back["instruction"]) == (b"b", b"r", "make it red")
    assert (back["clip_source_text"], back["clip_edited_text"], back["clip_direction"]) == (0.6, 0.5, 0.4)
    assert back["origin"] == "cycle"
    assert back["pair_id"] != forth["pair_id"]
    again = twin(back, "make it blue")
    assert {name: again[name] for name in forth if name not in ("pair_id", "origin")} == {
        name: forth[name] for name in forth if name not in ("pair_id", "origin")
    }
