"""Rows of a table with what another table holds under their ids: several tables of one origin share what is large.

No shuffle and no grouping: both tables' ids are read, each row is told its partner's place, and both are read by place.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hive_ray.artifacts.selection import Selection
from hive_ray.console import warn
from hive_ray.errors import ContractError
from hive_ray.schemas import id_column
from hive_ray.seeds import id_for


@dataclass(frozen=True)
class JoinedSelection(Selection):
    """Selected rows; row i has the further columns of row partner[i] of `beside`."""

    beside: Selection
    partner: np.ndarray

    def __post_init__(self) -> None:
        if len(self.partner) != len(self):
            raise ContractError(f"{len(self)} rows of {self.path} have {len(self.partner)} partners: select, then join")

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        wanted = self.schema.names if columns is None else columns
        further = [name for name in wanted if name in self.beside.schema.names and name != id_column(self.schema)]
        table = super().read(start, stop, [name for name in wanted if name not in further])
        if further:
            partners, places = np.unique(self.partner[start:stop], return_inverse=True)  # files are read in order
            there = replace(self.beside, file_of=self.beside.file_of[partners], row_of=self.beside.row_of[partners])
            found = there.read(0, len(there), further).take(places)
            for name in further:
                table = table.append_column(self.schema.field(name), found[name])
        return table.select(wanted)

    def key(self) -> str:
        return id_for(super().key(), self.beside.key(), self.partner.tobytes())


def join(rows: Selection, beside: Selection) -> JoinedSelection:
    """The rows that have a partner of the same id in `beside`; says how many have none."""
    key = id_column(rows.schema)
    twice = set(rows.schema.names) & set(beside.schema.names) - {key}
    if id_column(beside.schema) != key or twice:
        raise ContractError(
            f"{rows.path} and {beside.path} cannot be joined: their rows are named by {key!r} and "
            f"{id_column(beside.schema)!r}, and both hold {sorted(twice)}"
        )
    ids, theirs = (table.read(0, len(table), [key])[key].combine_chunks() for table in (rows, beside))
    places = pc.index_in(ids, value_set=theirs)  # pyright: ignore[reportAttributeAccessIssue] - made as it is imported
    found = np.asarray(places.is_valid())
    if not found.all():
        warn(
            f"{(~found).sum()} of {len(rows)} rows of {rows.path} are in none of {beside.path}, and left out: "
            "its manifest counts what was dropped"
        )
    partner = np.asarray(places.drop_null(), dtype=np.int64)
    further = [field for field in beside.schema if field.name != key]
    schema = pa.schema([*rows.schema, *further], metadata=rows.schema.metadata)
    return JoinedSelection(rows.paths, schema, rows.files, rows.file_of[found], rows.row_of[found], beside, partner)
