"""Which internals of other packages a source uses, read from its syntax tree.

Internal is a name with a part that begins with an underscore, whatever is in a module of UNDOCUMENTED, and each
attribute of another package's module or class to which something is assigned.
"""

import ast
import pydoc
import re
import sys
import types
from collections.abc import Iterable, Iterator

OURS = {"hive_ray", "jobs", "serve", "studies"}
UNDOCUMENTED = ("deepspeed.checkpoint", "deepspeed.runtime", "deepspeed.utils.tensor_fragment", "ray.core.generated")
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "__pydantic_init_subclass__", "__version__"}
"""Names with an underscore that their packages' documentation tells users to use."""
OF_PYTHON = {
    name
    for kind in (object, type, dict, int, BaseException, types.FunctionType, types.ModuleType(""))
    for name in dir(kind)
    if name.startswith("__")
} | {"__file__", "__path__"}
UNKNOWN = "<unknown>"
"""Stands for an object of which the source does not say what it is."""


def private(name: str) -> bool:
    return name.startswith("_") and name not in DOCUMENTED | OF_PYTHON


def is_internal(symbol: str) -> bool:
    """Whether a dotted name of another package is none of its public API."""
    inside = symbol.split(".")[1:]
    return any(map(private, inside)) or any(f"{symbol}.".startswith(f"{module}.") for module in UNDOCUMENTED)


def own_private_names(sources: Iterable[str]) -> set[str]:
    """The names with an underscore that the sources define themselves."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if private(name)}


def internals_used(source: str, own: set[str]) -> set[str]:
    """The dotted names of other packages' internals in a source; `own`: names with an underscore that are ours."""
    tree = ast.parse(source)
    names = _names_of_others(tree)
    found = {name for name in names.values() if is_internal(name)}
    chained: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in chained:
            symbol = _dotted(node, names, chained)
            if symbol and (is_internal(symbol) or isinstance(node.ctx, ast.Store | ast.Del)):
                found.add(symbol)
        elif isinstance(node, ast.Call) and _name(node.func) in ("setattr", "delattr", "patch.object") and node.args:
            target = _dotted(node.args[0], names, set())
            if target:
                found.add(f"{target}.{getattr(node.args[1], 'value', UNKNOWN)}")
        elif isinstance(node, ast.Constant) and _is_module_name(node.value):
            found.add(node.value)
    return found | _of_unknown_objects(tree, names, own) | _of_subclasses(tree, names)


def _names_of_others(tree: ast.AST) -> dict[str, str]:
    """Names that imports bind -> what they stand for, of packages that are neither ours nor Python's."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
                if is_internal(alias.name):
                    found[alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return {name: symbol for name, symbol in found.items() if _is_others(symbol)}


def _is_others(symbol: str) -> bool:
    return symbol.split(".")[0] not in OURS | sys.stdlib_module_names


def _is_module_name(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"(deepspeed|ray)(\.\w+)+", value)) and is_internal(value)


def _dotted(node: ast.AST, names: dict[str, str], seen: set[ast.AST]) -> str:
    """The dotted name of a chain of attributes that begins with a name of another package; else an empty string."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        seen.add(node)
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return ""
    return ".".join([names[node.id], *reversed(parts)])


def _name(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _of_unknown_objects(tree: ast.AST, names: dict[str, str], own: set[str]) -> set[str]:
    """Attributes with an underscore, of objects of other packages as far as their names tell."""
    of_classes = {node for _, node in _members(tree, names)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own and node not in of_classes:
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if not (isinstance(root, ast.Name) and (root.id in names or root.id in sys.stdlib_module_names)):
                found.add(f"{UNKNOWN}.{node.attr}")
    return found


def _of_subclasses(tree: ast.AST, names: dict[str, str]) -> set[str]:
    """Members with an underscore that a subclass of another package's class overrides, or has from it."""
    found = set()
    for base, node in _members(tree, names):
        name = node.attr if isinstance(node, ast.Attribute) else node.name
        kind = pydoc.locate(base)
        if isinstance(node, ast.Attribute) or hasattr(kind, name):
            found.add(f"{base}.{name}")
    return found


def _members(tree: ast.AST, names: dict[str, str]) -> Iterator[tuple[str, ast.AST]]:
    """Another package's class, and a member with an underscore that a subclass of it defines, or uses without defining
    it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [symbol for symbol in (_dotted(base, names, set()) for base in node.bases) if symbol]
        if not bases:
            continue
        methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]
        own = {method.name for method in methods if private(method.name)} | _set_on_self(node)
        for method in methods:
            if private(method.name):
                yield bases[0], method
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and private(inner.attr):
                owner = ast.unparse(inner.value)
                if owner == "super()" or (owner in ("self", "cls") and inner.attr not in own):
                    yield bases[0], inner


def _set_on_self(node: ast.ClassDef) -> set[str]:
    """Attributes that a class sets, and does not read before in the same method."""
    stored: set[str] = set()
    for method in node.body:
        attributes = [inner for inner in ast.walk(method) if isinstance(inner, ast.Attribute)]
        mine = [inner for inner in attributes if isinstance(inner.value, ast.Name) and inner.value.id == "self"]
        first = {inner.attr: inner for inner in sorted(mine, key=lambda inner: (inner.lineno, inner.col_offset))[::-1]}
        stored |= {name for name, inner in first.items() if isinstance(inner.ctx, ast.Store)}
    return stored
