"""Ids, seeds and splits derived from content: equal in every run and on every machine."""

import hashlib

import torch

Part = str | int | bytes


def _digest(*parts: Part) -> bytes:
    """A digest of 16 bytes that depends on every part and on the boundaries between parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        state.update(len(data).to_bytes(8, "big") + data)
    return state.digest()


def id_for(*parts: Part) -> str:
    """A content id: 16 hexadecimal digits."""
    return _digest(*parts)[:8].hex()


def seed_for(*parts: Part) -> int:
    """A seed in [0, 2**63): fits an Arrow int64 and a torch.Generator."""
    return int.from_bytes(_digest(*parts)[:8], "big") >> 1


def uniform_for(*parts: Part) -> float:
    """A number in [0, 1), uniform over contents."""
    return seed_for(*parts) / 2**63


def generator_for(*parts: Part) -> torch.Generator:
    """A CPU generator seeded by content."""
    return torch.Generator().manual_seed(seed_for(*parts))


def split_for(caption_id: str, *, rank_rate: float, test_rate: float) -> str:
    """The split of a caption and of everything made from it: "test", "rank" or "train"."""
    place = uniform_for("split", caption_id)
    if place < test_rate:
        return "test"
    return "rank" if place < test_rate + rank_rate else "train"
