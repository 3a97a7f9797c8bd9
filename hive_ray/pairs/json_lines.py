"""JSON Lines as a stream, with words for the line that is none."""

import json
from collections.abc import Iterator
from typing import Any

from hive_ray import storage


def read_json_lines(address: str, name: str) -> Iterator[tuple[str, str, Any]]:
    """Where a line stands, in words that begin with `name`; the line; and its value. Empty lines are passed over.

    Raises a ValueError at the first line that is not JSON.
    """
    with storage.open_text(address) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                yield where, line, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: {line[:80]!r} is not JSON ({error})") from error
