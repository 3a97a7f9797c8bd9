import json
from pathlib import Path

import pytest

from hive_ray.pairs.inversion import Inversion, invert

CHECKED = Path(__file__).parents[1] / "data" / "inversions.jsonl"
"""A hundred real instructions with their inverses as a person judged them; drawn from those that no rule was made for.
From Tencent-Hunyuan/UniRL, datasets/image_edit/test.jsonl, Apache-2.0."""


@pytest.mark.parametrize(
    ("instruction", "inverse"),
    [
        ("add a dog", "remove the dog"),
        ("Remove the dog.", "Add the dog."),
        ("Please remove the hat from the man.", "Add the hat to the man."),
        ("Add a hat to the man", "Remove the hat from the man"),
        ("Add a road leading to the castle", "Remove the road leading to the castle"),
        ("Remove the rope hanging from the mast", "Add the rope hanging from the mast"),
        ("Put a vase on the table.", "Remove the vase on the table."),
        ("replace the cat with a dog", "replace the dog with the cat"),
        ("Change the red car to blue.", "Change the blue car to red."),
        ("Turn the red car into a dark blue one", "Turn the dark blue car into a red one"),
        ("Change the sky from blue to pink in the image.", "Change the sky from pink to blue in the image."),
        ("Change the word 'A' to 'B' in the image.", "Change the word 'B' to 'A' in the image."),
        ("Change the forest background to a beach", "Change the background to a forest background"),
        ("make the tree taller", "make the tree shorter"),
        ("Move the cup to the left.", "Move the cup to the right."),
        ("Zoom in.", "Zoom out."),
        ("turn on the lights", "turn off the lights"),
        ("swap the red circle and the blue square", "swap the red circle and the blue square"),
        ("Take off the gloves", "Put on the gloves"),
    ],
)
def test_the_inverse_undoes_the_instruction(instruction, inverse):
    assert invert(instruction) == Inversion(inverse)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Change the background to a beach.", "state_before_not_said"),
        ("make the circle blue", "no_rule"),
        ("Change the car to blue", "state_before_not_said"),
        ("Place the boat in the distance", "state_before_not_said"),
        ("Remove all the people", "state_before_not_said"),
        ("Add more contrast", "state_before_not_said"),
        ("Turn it into a watercolor painting", "changes_everything"),
        ("Remove the cat and add a dog", "several_edits"),
        ("Remove the cat. Add a dog.", "several_edits"),
        ("Add a storm to amplify the mood", "more_than_an_edit"),
        ("A man reads a newspaper", "no_rule"),
        ("", "no_rule"),
    ],
)
def test_what_its_words_do_not_say_how_to_undo_is_refused(instruction, reason):
    assert invert(instruction) == Inversion(refused=reason)


@pytest.mark.parametrize("kind", ["add", "replace"])
def test_undone_twice_is_the_instruction_again(kind):
    text = {"add": "add the dog to the garden", "replace": "replace the cat with the dog"}[kind]
    assert invert(invert(text).instruction).instruction == text


def test_real_instructions_have_the_inverses_that_a_person_checked():
    """Another inverse than the one that was checked must be checked by a person before it takes its place."""
    rows = [json.loads(line) for line in CHECKED.read_text().splitlines()]
    assert len(rows) == 100
    wrong = {row["instruction"]: invert(row["instruction"]).instruction for row in rows}
    assert wrong == {row["instruction"]: row["inverse"] for row in rows}
    assert all(row["right"] for row in rows)
