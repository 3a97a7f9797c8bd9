"""Read settings from YAML; errors name the file, the line and the setting.

<run>/config.yaml -> a Section
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hive_ray import storage
from hive_ray.files.text_files import BYTE_ORDER_MARK, OTHER_ENCODINGS

Kind = TypeVar("Kind", bound=BaseModel)
MAX_SHOWN = 3
"""How many wrong settings a message names."""


class SettingsError(ValueError):
    """A settings file that cannot be read or has an invalid setting."""


def load_settings(address: str, kind: type[Kind]) -> Kind:
    """Load the settings of a YAML file. Raises FileNotFoundError, or SettingsError for an invalid file or setting."""
    values, tree = _read(address)
    try:
        return kind(**values)
    except ValidationError as error:
        errors = sorted(error.errors(), key=lambda problem: problem["type"] == "missing")  # a misspelt name explains it
        wrong = [f"{address}, line {_line_of(tree, problem['loc'])}: {_words(problem)}" for problem in errors]
        raise SettingsError(_listed(wrong)) from error


def read_settings(address: str) -> dict[str, Any]:
    """The values of a YAML file, not validated. Raises as `load_settings`."""
    return _read(address)[0]


def describe_errors(error: ValidationError) -> str:
    """Describe the refused settings in one sentence."""
    return _listed([_words(problem) for problem in error.errors()])


def _read(address: str) -> tuple[dict[str, Any], yaml.Node]:
    text = _text(address)
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{address}, line {mark.line + 1}" if mark else address
        raise SettingsError(f"{where}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"{address}: not YAML: {str(error).splitlines()[0] if str(error) else error!r}") from error
    if values is None:
        raise SettingsError(f"{address} is empty; a settings file is what a run leaves as its config.yaml")
    if not isinstance(values, dict):
        raise SettingsError(f"{address}: a {type(values).__name__} stands where settings by name are wanted")
    for line, key in _odd_keys(tree):
        raise SettingsError(f"{address}, line {line}: {key}")
    return values, tree


def _text(address: str) -> str:
    try:
        data = storage.read_bytes(address)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no settings file {address}; a run's is <run>/config.yaml") from error
    for mark, encoding in OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise SettingsError(f"{address} is in {encoding}: save it as UTF-8")
    try:
        return data.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 (it may be Windows-1252)"
        raise SettingsError(f"{address}, line {line}: {problem}") from error


def _odd_keys(tree: yaml.Node) -> Iterator[tuple[int, str]]:
    """Yield names that are not strings or are set twice; YAML would silently use the last value."""
    nodes, known = [tree], set()
    while nodes:
        node = nodes.pop()
        if id(node) in known:  # reached again through an alias
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            yield from _odd_keys_of(node)
            nodes += [value for _, value in node.value]


def _odd_keys_of(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    names = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            yield line, f"{(key.value if isinstance(key, yaml.ScalarNode) else key.tag)!r} is no name of a setting"
        elif key.value in names:
            yield line, f"{key.value} is set twice"
        else:
            names.add(key.value)


def _line_of(tree: yaml.Node, place: tuple[str | int, ...]) -> int:
    """The line of a setting, or of the section that lacks it."""
    line = tree.start_mark.line + 1
    for part in place:
        if isinstance(tree, yaml.MappingNode):
            pairs = [(key, value) for key, value in tree.value if key.value == part]
            if not pairs:
                break
            line, tree = pairs[0][0].start_mark.line + 1, pairs[0][1]
        elif isinstance(tree, yaml.SequenceNode) and isinstance(part, int) and part < len(tree.value):
            tree = tree.value[part]
            line = tree.start_mark.line + 1
        else:
            break
    return line


def _words(wrong: ErrorDetails) -> str:
    name = ".".join(map(str, wrong["loc"])) or "settings"
    if wrong["type"] == "extra_forbidden":
        return f"there is no setting {name}"
    if wrong["type"] == "missing":
        return f"{name} is missing"
    message = wrong["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    value = wrong["input"]
    shown = f" is {value!r}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{name}{shown}: {message[:1].lower()}{message[1:]}"


def _listed(wrong: list[str]) -> str:
    more = len(wrong) - MAX_SHOWN
    return "; ".join(wrong[:MAX_SHOWN]) + (f"; and {more} more" if more > 0 else "")
