"""The reverse pair: edited -> source with the inverse instruction (HIVE's cycle consistency)."""

from hive_ray.schemas import Row
from hive_ray.seeds import id_for


def twin(pair: Row, inverse_instruction: str) -> Row:
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


SOURCE_COLUMNS = ["instruction_id", "source_caption", "edited_caption", "origin"]


def source_of(pair: Row) -> str:
    """What a pair and its twin were made from, given SOURCE_COLUMNS: the caption before the edit, which other edits
    of it share; where nobody wrote captions, the instruction's id."""
    return pair["edited_caption" if pair["origin"] == "cycle" else "source_caption"] or pair["instruction_id"]
