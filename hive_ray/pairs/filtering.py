"""Keep or drop a pair, with the reason; the best of several (InstructPix2Pix's rules)."""

from hive_ray.config import Pairs
from hive_ray.schemas import Row, Rows


def least_similarities(settings: Pairs) -> dict[str, float]:
    """The least value of each CLIP similarity column."""
    return {
        "clip_image": settings.least_clip_image,
        "clip_source_text": settings.least_clip_source_text,
        "clip_edited_text": settings.least_clip_edited_text,
        "clip_direction": settings.least_clip_direction,
    }


def drop_reason(pair: Row, least: dict[str, float]) -> str | None:
    """Why this pair is not kept, or None: `clip_direction_below_0.2`."""
    for column, limit in least.items():
        if pair[column] < limit:
            return f"{column}_below_{limit:g}"
    return None


def keep_best(pairs: Rows, least: dict[str, float], keep: int) -> tuple[Rows, list[str]]:
    """The `keep` pairs of one instruction with the greatest clip_direction among those that pass, and the reasons of
    all the others; ties are broken by pair_id, so the order of the input does not matter."""
    reasons = [drop_reason(pair, least) for pair in pairs]
    passed = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    passed.sort(key=lambda pair: (-pair["clip_direction"], pair["pair_id"]))
    dropped = [reason for reason in reasons if reason] + ["not_among_the_best"] * max(0, len(passed) - keep)
    return passed[:keep], dropped
