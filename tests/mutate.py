"""Damaged copies of good inputs, the same ones for the same seed: what tests of readers and decoders are fed with.

HIVE_RAY_MUTATIONS=10000 python -m pytest -k mutated
"""

import os
import random
from collections.abc import Iterator, Sequence

COUNT = int(os.environ.get("HIVE_RAY_MUTATIONS", "200"))
"""Damaged copies of each kind of input that a test tries."""
PIECES = (
    b"", b"\0", b"\n", b"\r\n", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"\xc2\x85", b"\\ud83d", b'"',
    b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"1e999", b"-1", b"true", b"\xed\xa0\xbd", b"'", b"9" * 40,
    b"A" * 300,
)  # fmt: skip
"""What is put in, or in place of something: what has broken readers before."""


def mutated(good: Sequence[bytes], count: int = COUNT, seed: int = 0) -> Iterator[bytes]:
    """`count` copies of these inputs in turns, each with one to four changes: bytes changed, taken out, put in,
    doubled, or cut off."""
    drawn = random.Random(seed)
    for number in range(count):
        data = bytearray(good[number % len(good)])
        for _ in range(drawn.randint(1, 4)):
            _change(data, drawn)
        yield bytes(data)


def _change(data: bytearray, drawn: random.Random) -> None:
    start = drawn.randrange(len(data) + 1)
    stop = min(len(data), start + drawn.choice((0, 1, 1, 2, 4, 16, 256)))
    kind = drawn.randrange(6)
    if kind == 0 and start < len(data):
        data[start] ^= 1 << drawn.randrange(8)
    elif kind == 1:
        del data[start:stop]
    elif kind == 2:
        data[start:start] = drawn.choice(PIECES)
    elif kind == 3:
        data[start:stop] = drawn.choice(PIECES)
    elif kind == 4:
        data[start:start] = data[start:stop]
    else:
        del data[start:]
