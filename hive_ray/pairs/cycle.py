"""The reverse pair: edited -> source with the inverse instruction (HIVE's cycle consistency)."""

from hive_ray.schemas import Row
from hive_ray.seeds import id_for


def make_twin(pair: Row, inverse_instruction: str) -> Row:
    """Reverse a pair: swap pictures, captions and their similarities. The directional similarity stays, since
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
    """Names of the sources of a pair; pairs that share a name, such as a pair and its twin, have the same source.

    The name is the caption before the edit. Pairs without captions are named by both pictures, since the edited picture
    of one turn may be the source of the next.
    """
    caption = pair["edited_caption" if pair["origin"] == "cycle" else "source_caption"]
    return [caption] if caption else [id_for(pair["source_image"]), id_for(pair["edited_image"])]
