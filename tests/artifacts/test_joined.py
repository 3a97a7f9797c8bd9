from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.joined import join
from hive_ray.artifacts.selection import Selection, select
from hive_ray.errors import ContractError
from hive_ray.training.rows import RowStore


def schema(name: str, key: str = "point_id", **columns: pa.DataType) -> pa.Schema:
    fields = [pa.field(column, kind, nullable=False) for column, kind in {key: pa.string(), **columns}.items()]
    return pa.schema(fields, metadata={"table": name, "id": key})


POINTS, HEAVY = schema("points", x=pa.float32()), schema("heavy", bulk=pa.binary())


def write(path, schema, rows, **made_from) -> Selection:
    write_rows(str(path), schema, rows, made_from, rows_per_file=7)
    return select(str(path), schema)


def point(index: int) -> dict:
    return {"point_id": f"p{index}", "x": float(index)}


def heavy(index: int) -> dict:
    return {"point_id": f"p{index}", "bulk": bytes([index])}


def test_each_row_finds_its_partner_in_any_order_and_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    points = write(tmp_path / "points", POINTS, [point(index) for index in range(40)])
    order = np.random.default_rng(0).permutation(50).tolist()
    joined = join(points, write(tmp_path / "heavy", HEAVY, [heavy(index) for index in order]))
    assert joined.read(3, 9).to_pylist() == [point(index) | heavy(index) for index in range(3, 9)]
    assert joined.read(3, 4, ["bulk", "x"]).to_pylist() == [{"bulk": bytes([3]), "x": 3.0}]
    store = RowStore(joined, ["point_id", "bulk"], write=True).write_cache("test").open()
    assert store.read(np.array([39, 0])) == [heavy(39), heavy(0)]
    store.close()


def test_rows_without_a_partner_are_left_out_and_said(tmp_path, capsys):
    points = write(tmp_path / "points", POINTS, [point(index) for index in range(9)])
    joined = join(points, write(tmp_path / "heavy", HEAVY, [heavy(index) for index in range(8, 0, -2)]))
    assert joined.read(0, 9).to_pylist() == [point(index) | heavy(index) for index in (2, 4, 6, 8)]
    assert len(joined) == 4
    assert "5 of 9 rows of" in capsys.readouterr().out


def test_other_partners_are_other_rows(tmp_path):
    points = write(tmp_path / "points", POINTS, [point(index) for index in range(4)])
    rows = [heavy(index) for index in range(4)]
    first = join(points, write(tmp_path / "one", HEAVY, rows, precision="fp32"))
    other = join(points, write(tmp_path / "two", HEAVY, rows, precision="fp16"))
    assert len({points.key(), first.key(), other.key()}) == 3


def test_tables_that_name_their_rows_otherwise_or_share_columns_are_refused(tmp_path):
    points = write(tmp_path / "points", POINTS, [point(0)])
    lines = write(tmp_path / "lines", schema("lines", "line_id", bulk=pa.binary()), [{"line_id": "a", "bulk": b""}])
    with pytest.raises(ContractError, match="'point_id' and 'line_id'"):
        join(points, lines)
    with pytest.raises(ContractError, match=r"both hold \['x'\]"):
        join(points, points)
    joined = join(points, write(tmp_path / "heavy", HEAVY, [heavy(0)]))
    with pytest.raises(ContractError, match=r"0 rows of .* have 1 matches: select, then join"):
        replace(joined, file_of=joined.file_of[:0], row_of=joined.row_of[:0])
