"""The installed packages still have each internal that ours use, as they use it."""

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hive_ray.cluster.one_machine import table
from hive_ray.internals import Internal
from hive_ray.training import deepspeed_fixes

ROOT = Path(__file__).parents[1] / "hive_ray"
ROWS = (*table.INTERNALS, *deepspeed_fixes.INTERNALS)


def lost(row: Internal) -> str:
    """What the installed package no longer has of a row's, with its name; an empty string where it has all."""
    top, *parts = row.symbol.split(".")
    holder, name = importlib.import_module(top), top
    for part in parts:
        name = f"{name}.{part}"
        if not has(holder, part):
            return name
        holder = getattr(holder, part, None)  # None: an attribute of instances
    for attribute in row.attributes:
        if not has(holder, attribute):
            return f"{row.symbol}.{attribute}"
    parameters = inspect.signature(holder).parameters if row.parameters else ()
    for parameter in row.parameters:
        if parameter not in parameters:
            return f"{row.symbol}({parameter}=...)"
    if row.value is not None and holder != row.value:
        return f"{row.symbol} == {row.value!r} (it is {holder!r})"
    return ""


def has(holder: Any, name: str) -> bool:
    """Whether a module or class has a name, or its source speaks of it, as of an attribute of its instances."""
    if isinstance(holder, ModuleType):
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"{holder.__name__}.{name}")
    return hasattr(holder, name) or any(re.search(rf"\b{name}\b", source) for source in sources(holder))


def sources(holder: Any) -> Iterator[str]:
    """The source of a module, or of a class and those that it is derived from."""
    for each in inspect.getmro(holder) if inspect.isclass(holder) else (holder,):
        with suppress(OSError, TypeError):  # it is empty, or compiled
            yield inspect.getsource(each)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.symbol)
def test_the_installed_package_has_what_we_use(row):
    assert not (missing := lost(row)), f"{missing} is gone, for hive_ray/{row.where}: {row.why}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.symbol)
def test_each_row_is_used_where_it_says(row):
    text = (ROOT / row.where).read_text().split("INTERNALS = (")[0]
    spoken = {row.symbol.rsplit(".", 1)[-1], *row.attributes, str(row.value)}
    assert any(re.search(rf"\b{re.escape(name)}\b", text) for name in spoken), f"{row.where} does not use {row.symbol}"


@pytest.mark.parametrize(
    ("row", "gone"),
    [
        (Internal("ray._private.services.get_nodes", "", ""), "ray._private.services.get_nodes"),
        (Internal("ray._private.serviced.get_node", "", ""), "ray._private.serviced"),
        (
            Internal("ray._private.services.get_node", "", "", parameters=("gcs_address", "name")),
            "ray._private.services.get_node(name=...)",
        ),
        (
            Internal("ray.data._internal.stats.STATS_ACTOR_NAME", "", "", value="stats"),
            "ray.data._internal.stats.STATS_ACTOR_NAME == 'stats' (it is 'datasets_stats_actor')",
        ),
        (
            Internal("deepspeed.runtime.compiler", "", "", attributes=("compile", "no_such_decorator")),
            "deepspeed.runtime.compiler.no_such_decorator",
        ),
        (
            Internal(f"{table.WORKER_GROUP}._no_such_context", "", ""),
            f"{table.WORKER_GROUP}._no_such_context",
        ),
    ],
)
def test_what_is_gone_would_be_named(row, gone):
    assert lost(row) == gone
