"""The files of a dataset's folder: which of them are data, and of which split."""

import re
from fnmatch import translate

from hive_ray import storage

SYSTEM_FILES = (
    ".DS_Store", "._*", "__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN",
    "System Volume Information", "@eaDir", "#recycle", "lost+found", ".ipynb_checkpoints", ".Trash*", ".Spotlight-*",
    ".fseventsd", ".git", ".cache", "*.crdownload", "*.part", "*.partial", "*.download",
)  # fmt: skip
"""Names of files and folders of operating systems, browsers and tools, which are not data."""
SYSTEM_FILE = re.compile("|".join(map(translate, SYSTEM_FILES)), re.IGNORECASE)
SPLIT_WORDS = ("train", "test", "val", "dev", "eval")
"""Prefixes of split names."""


def is_system_file(name: str) -> bool:
    """Whether a file or folder of this name (without a path) is not data (see SYSTEM_FILES)."""
    return SYSTEM_FILE.match(name) is not None


def is_data(name: str) -> bool:
    """Whether a relative path may be data: no part is a system file or begins with _ or `.`."""
    return not any(part[:1] in ("_", ".") or is_system_file(part) for part in name.split("/"))


def data_files(folder: str) -> list[str]:
    """Names of the files of a dataset's folder, relative to it and sorted."""
    return [name for name in storage.list_versions(folder, is_system_file) if is_data(name)]


def select_split(dataset: str, names: list[str], split_name: str, *, may_have_none: bool = False) -> list[str]:
    """The addresses of the files of a split: the file name or a folder of its path begins with the split's name.

    may_have_none: if no path has the name of any split, all files are selected. Raises ValueError if no file is left.
    """
    chosen = [name for name in names if begins_with(name, split_name)]
    if not chosen and may_have_none and not any(begins_with(name, word) for name in names for word in SPLIT_WORDS):
        chosen = names
    if not chosen:
        raise ValueError(
            f"{dataset} has no file of the split {split_name!r}, but {len(names)} others ({', '.join(names[:3])}); "
            'set importing.split_name to how the wanted ones begin, or to "" for all'
        )
    return [storage.join(dataset, name) for name in chosen]


def begins_with(name: str, word: str) -> bool:
    """Whether a part of a relative path begins with a word."""
    return any(part.startswith(word) for part in name.split("/"))
