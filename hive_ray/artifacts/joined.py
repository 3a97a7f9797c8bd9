"""Rows of a table joined with the rows of another table that have the same ids.

Tables that are made from one table can share its large columns this way. Nothing is shuffled or grouped: the ids of
both tables are read once, each row gets the position of its match, and both tables are read by position.
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
    """N selected rows. Row i also has the columns of row `other_rows[i]` of `other`."""

    other: Selection
    other_rows: np.ndarray
    """(N,)"""

    def __post_init__(self) -> None:
        if len(self.other_rows) != len(self):
            raise ContractError(
                f"{len(self)} rows of {self.path} have {len(self.other_rows)} matches: select, then join"
            )

    def read(self, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
        wanted = self.schema.names if columns is None else columns
        further = [name for name in wanted if name in self.other.schema.names and name != id_column(self.schema)]
        table = super().read(start, stop, [name for name in wanted if name not in further])
        if further:
            # Rows are sorted, so that each file of the other table is read once and in order.
            matches, places = np.unique(self.other_rows[start:stop], return_inverse=True)
            sorted_rows = replace(self.other, file_of=self.other.file_of[matches], row_of=self.other.row_of[matches])
            columns_of_other = sorted_rows.read(0, len(sorted_rows), further).take(places)
            for name in further:
                table = table.append_column(self.schema.field(name), columns_of_other[name])
        return table.select(wanted)

    def key(self) -> str:
        return id_for(super().key(), self.other.key(), self.other_rows.tobytes())


def join(rows: Selection, other: Selection) -> JoinedSelection:
    """The rows whose id is in `other`. Warns of how many rows are left out.

    Raises ContractError if the two tables have different id columns, or share any other column.
    """
    key = id_column(rows.schema)
    twice = set(rows.schema.names) & set(other.schema.names) - {key}
    if id_column(other.schema) != key or twice:
        raise ContractError(
            f"{rows.path} and {other.path} cannot be joined: their rows are named by {key!r} and "
            f"{id_column(other.schema)!r}, and both hold {sorted(twice)}"
        )
    ids, theirs = (table.read(0, len(table), [key])[key].combine_chunks() for table in (rows, other))
    places = pc.index_in(ids, value_set=theirs)  # pyright: ignore[reportAttributeAccessIssue] - made as it is imported
    found = np.asarray(places.is_valid())
    if not found.all():
        warn(
            f"{(~found).sum()} of {len(rows)} rows of {rows.path} are not in {other.path} and are left out: "
            "its manifest counts what was dropped"
        )
    other_rows = np.asarray(places.drop_null(), dtype=np.int64)
    further = [field for field in other.schema if field.name != key]
    schema = pa.schema([*rows.schema, *further], metadata=rows.schema.metadata)
    return JoinedSelection(rows.paths, schema, rows.files, rows.file_of[found], rows.row_of[found], other, other_rows)
