"""Edits of scenes in words: instruction, wording, and inverse instruction.

An edit acts on a `Description`, so it can be written from a caption alone, as a language model would write it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from hive_ray.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    RESOLUTION,
    SHAPES,
    Description,
    Place,
    Scene,
    Thing,
    is_apart,
    move_inside,
    parse_caption,
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make the {thing} {colour}",
        "change the {thing} to {colour}",
        "paint the {thing} {colour}",
        "turn the {thing} {colour}",
    ),
    "reshape": (
        "turn the {thing} into {a_shape}",
        "replace the {thing} with {a_shape}",
        "change the {thing} into {a_shape}",
    ),
    "add": ("add {a_thing} {where}", "put {a_thing} {where}", "draw {a_thing} {where}"),
    "remove": ("remove the {thing}", "delete the {thing}", "erase the {thing}", "take away the {thing}"),
    "background": (
        "make the background {colour}",
        "change the background to {colour}",
        "turn the background {colour}",
        "give it {a_colour} background",
    ),
    "swap": ("swap the {thing} and the {other}", "exchange the {thing} and the {other}"),
    "enlarge": ("make the {thing} bigger", "enlarge the {thing}", "make the {thing} large"),
    "shrink": ("make the {thing} smaller", "shrink the {thing}", "make the {thing} small"),
}

KINDS = ("recolour", "reshape", "add", "remove", "background", "swap", "resize")
MAX_THINGS = 3
POSITION_PHRASES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


@dataclass(frozen=True)
class Edit:
    """An edit of a description: kind, instruction, inverse instruction, and the edited description."""

    kind: str
    instruction: str
    inverse_instruction: str
    edited: Description


def write_edits(caption: str, count: int, rng: np.random.Generator) -> list[Edit]:
    """`count` edits of a caption with distinct instructions; CaptionError if it does not describe a scene."""
    source = parse_caption(caption)
    possible = [kind for kind in KINDS if _possible(kind, source)]
    edits: dict[str, Edit] = {}
    order = [str(kind) for kind in rng.permutation(possible)]
    for attempt in range(20 * count):
        edit = _WRITERS[order[attempt % len(order)]](source, rng)
        if edit is not None and edit.edited != source:
            edits.setdefault(edit.instruction, edit)
        if len(edits) == count:
            break
    return list(edits.values())


def apply_edit(scene: Scene, edited: Description, rng: np.random.Generator) -> Scene | None:
    """The scene after an edit to `edited`; other things keep their places. None if there is no room."""
    before, after = scene.description.things, edited.things
    if len(after) > len(before):
        return _with_one_more(scene, edited, rng)
    if len(after) < len(before):
        places = tuple(where for thing, where in zip(before, scene.places, strict=True) if thing in after)
    elif set(after) == set(before):  # a swap, or another background
        radii = {thing: where.radius for thing, where in zip(before, scene.places, strict=True)}
        moved = [replace(where, radius=radii[thing]) for thing, where in zip(after, scene.places, strict=True)]
        places = tuple(move_inside(where) for where in moved)
    else:
        places = tuple(
            where if old.size == new.size else move_inside(replace(where, radius=float(rng.uniform(*RADII[new.size]))))
            for old, new, where in zip(before, after, scene.places, strict=True)
        )
    return Scene(edited, places) if is_apart(places) else None


def _with_one_more(scene: Scene, edited: Description, rng: np.random.Generator) -> Scene | None:
    index = next(i for i, thing in enumerate(edited.things) if thing not in scene.description.things)
    for _ in range(100):
        radius = float(rng.uniform(*RADII[edited.things[index].size]))
        where = move_inside(Place(float(rng.uniform(0, RESOLUTION)), float(rng.uniform(0, RESOLUTION)), radius))
        places = (*scene.places[:index], where, *scene.places[index:])
        if is_apart(places):
            return Scene(edited, places)
    return None


def vocabulary_texts() -> Iterator[str]:
    """Yield texts that contain every wording, and every word that may fill it: the corpus of the tokenizer."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for colour in COLOURS:
            for ground in BACKGROUNDS:
                things = (Thing(shape, colour, "small"), Thing("disc", "plain", "large"))
                yield Description(things, ground).caption.replace("plain disc", f"{colour} {shape}")
    for phrasings in PHRASINGS.values():
        for phrasing in phrasings:
            for shape in SHAPES:
                colour, ground = str(rng.choice(list(COLOURS))), str(rng.choice(list(BACKGROUNDS)))
                for where in POSITION_PHRASES.values():
                    yield phrasing.format(
                        thing=f"{colour} {shape}", other=shape, colour=ground, a_colour=f"a {ground}", where=where,
                        a_shape=f"a {shape}", a_thing=f"an orange {shape}",
                    )  # fmt: skip


def _possible(kind: str, source: Description) -> bool:
    count = len(source.things)
    return {"add": count < MAX_THINGS, "remove": count > 1, "swap": count > 1}.get(kind, True)


def _named(thing: Thing, source: Description, rng: np.random.Generator) -> str:
    """A phrase for a thing: in half of the cases only its shape, if that is unambiguous."""
    alone = sum(thing.shape == other.shape for other in source.things) == 1
    return thing.shape if alone and rng.random() < 0.5 else f"{thing.colour} {thing.shape}"


def _phrase(key: str, rng: np.random.Generator, **words: str) -> str:
    return str(rng.choice(PHRASINGS[key])).format(**words)


def _pick(options, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _with(source: Description, index: int, thing: Thing) -> Description:
    return replace(source, things=(*source.things[:index], thing, *source.things[index + 1 :]))


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _changed(key: str, inverse: str, source: Description, rng, change: Callable[[Thing], Thing], words) -> Edit:
    """An edit of one thing; `words` maps a thing to the words that fill the phrasing."""
    index = int(rng.integers(len(source.things)))
    before = source.things[index]
    after = change(before)
    edited = _with(source, index, after)
    return Edit(
        key if key == inverse else "resize",
        _phrase(key, rng, thing=_named(before, source, rng), **words(after)),
        _phrase(inverse, rng, thing=_named(after, edited, rng), **words(before)),
        edited,
    )


def _recolour(source: Description, rng: np.random.Generator) -> Edit:
    taken = {thing.colour for thing in source.things}
    colour = _pick([name for name in COLOURS if name not in taken], rng)
    return _changed(
        "recolour",
        "recolour",
        source,
        rng,
        lambda t: replace(t, colour=colour),
        lambda t: {"colour": t.colour},
    )


def _reshape(source: Description, rng: np.random.Generator) -> Edit:
    taken = {thing.shape for thing in source.things}
    shape = _pick([name for name in SHAPES if name not in taken], rng)
    return _changed(
        "reshape",
        "reshape",
        source,
        rng,
        lambda t: replace(t, shape=shape),
        lambda t: {"a_shape": _a(t.shape)},
    )


def _resize(source: Description, rng: np.random.Generator) -> Edit | None:
    target = str(rng.choice(["large", "small"]))
    if all(thing.size == target for thing in source.things):
        target = "small" if target == "large" else "large"
    index = _pick([i for i, thing in enumerate(source.things) if thing.size != target], rng)
    before = source.things[index]
    after = replace(before, size=target)
    edited = _with(source, index, after)
    if not _fits(edited):
        return None
    forth, back = ("enlarge", "shrink") if target == "large" else ("shrink", "enlarge")
    named = _named(before, source, rng)
    return Edit("resize", _phrase(forth, rng, thing=named), _phrase(back, rng, thing=named), edited)


def _where(index: int, count: int) -> str:
    return POSITION_PHRASES["left" if index == 0 else "right" if index == count - 1 else "middle"]


def _add(source: Description, rng: np.random.Generator) -> Edit | None:
    used_shapes = {thing.shape for thing in source.things}
    used_colours = {thing.colour for thing in source.things}
    shapes = [name for name in SHAPES if name not in used_shapes]
    colours = [name for name in COLOURS if name not in used_colours]
    thing = Thing(_pick(shapes, rng), _pick(colours, rng), _pick(("small", "large"), rng))
    index = int(rng.integers(len(source.things) + 1))
    edited = replace(source, things=(*source.things[:index], thing, *source.things[index:]))
    if not _fits(edited):
        return None
    instruction = _phrase("add", rng, a_thing=_a(thing.phrase), where=_where(index, len(edited.things)))
    return Edit("add", instruction, _phrase("remove", rng, thing=_named(thing, edited, rng)), edited)


def _remove(source: Description, rng: np.random.Generator) -> Edit:
    index = int(rng.integers(len(source.things)))
    thing = source.things[index]
    edited = replace(source, things=(*source.things[:index], *source.things[index + 1 :]))
    undone = _phrase("add", rng, a_thing=_a(thing.phrase), where=_where(index, len(source.things)))
    return Edit("remove", _phrase("remove", rng, thing=_named(thing, source, rng)), undone, edited)


def _background(source: Description, rng: np.random.Generator) -> Edit:
    ground = _pick([name for name in BACKGROUNDS if name != source.background], rng)
    instruction, undone = (_phrase("background", rng, colour=g, a_colour=_a(g)) for g in (ground, source.background))
    return Edit("background", instruction, undone, replace(source, background=ground))


def _swap(source: Description, rng: np.random.Generator) -> Edit:
    first, second = (int(i) for i in rng.permutation(len(source.things))[:2])
    things = list(source.things)
    things[first], things[second] = things[second], things[first]
    words = {
        "thing": _named(source.things[first], source, rng),
        "other": _named(source.things[second], source, rng),
    }
    return Edit(
        "swap",
        _phrase("swap", rng, **words),
        _phrase("swap", rng, **words),
        replace(source, things=tuple(things)),
    )


def _fits(description: Description) -> bool:
    """Whether the things have room: of three things at most one may be large."""
    return len(description.things) < 3 or sum(thing.size == "large" for thing in description.things) <= 1


_WRITERS: dict[str, Callable[[Description, np.random.Generator], Edit | None]] = {
    "recolour": _recolour,
    "reshape": _reshape,
    "add": _add,
    "remove": _remove,
    "background": _background,
    "swap": _swap,
    "resize": _resize,
}
