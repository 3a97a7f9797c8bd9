"""The reverse pair: edited -> source with the inverse instruction (HIVE's cycle consistency)."""

from hive_ray.schemas import Row
from hive_ray.seeds import id_for


def make_twin(pair: Row, inverse_instruction: str) -> Row:
    """The pair backwards: pictures, captions and their similarities change places; the direction stays, since
    cos(-a, -b) = cos(a, b)."""
    return pair | {
        "pair_id": id_for(pair["pair_id"], "cycle"),
        "instruction": inverse_instruction,
        "source_caption": pair["edited_caption"],
        "edited_caption": pair["source_caption"],
        "source_image": pair["edited_image"],
        "edited_image": pair["source_image"],
        "clip_source_text": pair["clip_edited_text"],
        "clip_edited_text": pair["clip_source_text"],
        "origin": "cycle",
    }


def source_names(pair: Row) -> list[str]:
    """Names of what a pair was made from; pairs that share a name, as a pair and its twin do, are of one source.

    The caption before the edit, or where nobody wrote captions the pictures: one turn's edited image is the source of
    the next.
    """
    caption = pair["edited_caption" if pair["origin"] == "cycle" else "source_caption"]
    return [caption] if caption else [id_for(pair["source_image"]), id_for(pair["edited_image"])]
