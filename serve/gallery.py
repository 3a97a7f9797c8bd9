"""Pictures of the annotation app, read from finished tables of the run folder when somebody looks at them.

Only an index of ids is held for good; pictures of neighbouring rows are kept for a while, up to a number of bytes.
Tables may be made anew while the app runs, and another process may hand out their tasks: what the index does not know
is looked for in the tables again.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock

import pyarrow as pa

from hive_ray import storage
from hive_ray.annotation.tasks import OTHER_SOURCE_PREFIX, UNCHANGED_PREFIX, Prompt
from hive_ray.artifacts.building import ROWS_PER_GROUP
from hive_ray.artifacts.chosen import inclusion_probabilities, read_chosen
from hive_ray.artifacts.manifest import read_manifest
from hive_ray.artifacts.selection import Selection, read_edit_ids, select
from hive_ray.config import Annotation
from hive_ray.images import ImageError, decode, media_type, to_plain
from hive_ray.schemas import CANDIDATES, EVALUATION, Row

logger = logging.getLogger(__name__)

SOURCE = "source"
CHOSEN_TABLES = ("candidates",)
"""The table that `chosen` is about."""
REFRESH_INTERVAL_S = 5.0
"""The tables are looked at again for what is not known, but not more often than this."""


class PictureError(LookupError):
    """A picture that the run folder does not have."""


@dataclass(frozen=True)
class Place:
    """Where an edit or a source lies: a row of one of the tables."""

    table: int
    row: int


class Gallery:
    """The prompts that there are to judge, and their pictures, by the newest tables that were looked at."""

    def __init__(self, run: str, settings: Annotation, now: Callable[[], float] = time.monotonic) -> None:
        self.run, self.settings, self.now = run, settings, now
        self.catalogue = Catalogue(run, settings)
        self._lock, self._looked = Lock(), float("-inf")

    @property
    def prompts(self) -> list[Prompt]:
        """Every prompt, in the order in which people get them: of the table `chosen`, or else of the tables."""
        return self.catalogue.prompts

    @property
    def probabilities(self) -> dict[str, float]:
        """As `chosen.inclusion_probabilities`."""
        return self.catalogue.probabilities

    def source(self, prompt_id: str) -> bytes:
        """The unedited picture, as it was encoded; PictureError if there is none."""
        return self._found(lambda catalogue: catalogue.source(prompt_id))

    def edit(self, prompt_id: str, edit_id: str) -> bytes:
        """An edit of a prompt, or what stands for one in a task of known answer; PictureError if there is none."""
        return self._found(lambda catalogue: catalogue.edit(prompt_id, edit_id))

    def unreadable(self, prompt_id: str, edit_ids: list[str]) -> str:
        """Why a task cannot be shown: a picture is broken. "" if it can; PictureError if a picture is not there."""
        for name in (SOURCE, *edit_ids):
            image = self.source(prompt_id) if name == SOURCE else self.edit(prompt_id, name)
            try:
                decode(image)
            except ImageError as error:
                return f"{'the source' if name == SOURCE else f'edit {name}'} of prompt {prompt_id}: {error}"
        return ""

    def _found(self, look: Callable[["Catalogue"], bytes]) -> bytes:
        """What is found in the catalogue, or else in a newer one; PictureError if it is in neither."""
        catalogue = self.catalogue
        try:
            return look(catalogue)
        except PictureError:
            newer = self._refreshed(catalogue)
            if newer is catalogue:
                raise
        return look(newer)

    def _refreshed(self, catalogue: "Catalogue") -> "Catalogue":
        """A catalogue of the tables as they are now; the same one if nothing has changed since, they are not finished,
        or they were looked at a moment ago."""
        with self._lock:
            if self.catalogue is catalogue and self.now() >= self._looked + REFRESH_INTERVAL_S:
                try:
                    if not catalogue.is_current:
                        self.catalogue = Catalogue(self.run, self.settings)
                except (OSError, ValueError) as error:  # they are being made
                    logger.warning("the tables cannot be looked at again now: %s", error)
                self._looked = self.now()
            return self.catalogue


class Catalogue:
    """The prompts and the pictures of the tables as they are when it is made."""

    def __init__(self, run: str, settings: Annotation) -> None:
        self.is_study = settings.mode == "study"
        names = settings.compared if self.is_study else (settings.candidates,)
        schema = EVALUATION if self.is_study else CANDIDATES
        paths, chosen = [storage.join(run, name) for name in names], storage.join(run, "chosen")
        self.num_tasks = settings.num_tasks
        self.paths = [*paths, chosen]
        self.manifests = [read_manifest(path) for path in self.paths]
        self.chosen: list[str] | None = None
        """Ids of the prompts that people rank, in their order; None where nothing was chosen and all are ranked."""
        self.probabilities: dict[str, float] = {}
        """Inclusion probabilities of chosen prompts, if they stand for all."""
        if names == CHOSEN_TABLES:
            rows = read_chosen(chosen, paths[0])
            self.chosen = None if rows is None else [row["prompt_id"] for row in rows]
            self.probabilities = inclusion_probabilities(chosen, rows)
        limit = settings.num_tasks if self.chosen is None else None
        self.tables = [select(path, schema, limit=limit) for path in paths]
        self.cache = Cache(settings.cache_megabytes * 2**20)
        self.places: dict[str, list[Place]] = {}
        self.prompts = list(self._compared(names) if self.is_study else self._in_order())

    def _in_order(self) -> list[Prompt]:
        """The prompts that people rank: the chosen ones by their places, or all as they lie in the table."""
        prompts = list(self._candidates())
        if self.chosen is None:
            return prompts
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        return [by_id[prompt_id] for prompt_id in self.chosen[: self.num_tasks]]

    def _candidates(self) -> Iterator[Prompt]:
        [table] = self.tables
        number = 0
        for file in table.files:
            for row in read_edit_ids(file, "prompt_id", "instruction", "editor"):
                if number == len(table):
                    return
                self.places[row["prompt_id"]] = [Place(0, number)]
                number += 1
                edits = tuple(edit["edit_id"] for edit in row["edits"])
                yield Prompt(row["prompt_id"], row["instruction"], edits, (row["editor"],) * len(edits))

    def _compared(self, names: tuple[str, ...]) -> Iterator[Prompt]:
        """Prompts that both editors have edited; the first edit of each counts."""
        columns = ["prompt_id", "evaluation_id", "instruction"]
        found: list[dict[str, tuple[int, Row]]] = []
        for table in self.tables:
            rows = table.read(0, len(table), columns).to_pylist()
            first: dict[str, tuple[int, Row]] = {}
            for number, row in enumerate(rows):
                first.setdefault(row["prompt_id"], (number, row))
            found.append(first)
        left, right = found
        shared = [prompt_id for prompt_id in left if prompt_id in right]
        if not shared:
            raise ValueError(
                f"{names[0]} and {names[1]} have no prompt in common; evaluate both editors on the same ones"
            )
        editors = tuple(name.rsplit("/", 1)[-1] for name in names)
        for prompt_id in shared:
            (one, row), (two, other) = left[prompt_id], right[prompt_id]
            self.places[prompt_id] = [Place(0, one), Place(1, two)]
            yield Prompt(prompt_id, row["instruction"], (row["evaluation_id"], other["evaluation_id"]), editors)

    @property
    def is_current(self) -> bool:
        """Whether the tables are still the same."""
        return self.manifests == [read_manifest(path) for path in self.paths]

    def source(self, prompt_id: str) -> bytes:
        """As `Gallery.source`."""
        return self._pictures(self._places(prompt_id)[0])[SOURCE]

    def edit(self, prompt_id: str, edit_id: str) -> bytes:
        """As `Gallery.edit`."""
        for bad in (UNCHANGED_PREFIX, OTHER_SOURCE_PREFIX):
            if edit_id.startswith(bad):
                return self.source(edit_id.removeprefix(bad))
        for place in self._places(prompt_id):
            pictures = self._pictures(place)
            if edit_id in pictures:
                return pictures[edit_id]
        raise PictureError(f"prompt {prompt_id} has no edit {edit_id}")

    def _places(self, prompt_id: str) -> list[Place]:
        if prompt_id not in self.places:
            raise PictureError(f"prompt {prompt_id} is not in the tables of the run folder")
        return self.places[prompt_id]

    def _pictures(self, place: Place) -> dict[str, bytes]:
        """The pictures of one row by edit id; its neighbours come along, since people go from row to row."""
        with self.cache.lock:
            kept = self.cache.get(place)
            if kept is not None:
                return kept
            start = place.row - place.row % ROWS_PER_GROUP
            table: Selection = self.tables[place.table]
            columns = ["source_image", *(("evaluation_id", "edited_image") if self.is_study else ("edits",))]
            rows: pa.Table = table.read(start, min(start + ROWS_PER_GROUP, len(table)), columns)
            for number, row in enumerate(rows.to_pylist(), start):
                self.cache.put(Place(place.table, number), _by_id(row))
            return self.cache.take(place)


class Cache:
    """Pictures by row, the least lately used dropped first where they exceed `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.held, self.lock = most, 0, Lock()
        self.rows: OrderedDict[Place, dict[str, bytes]] = OrderedDict()

    def get(self, place: Place) -> dict[str, bytes] | None:
        if place in self.rows:
            self.rows.move_to_end(place)
        return self.rows.get(place)

    def put(self, place: Place, pictures: dict[str, bytes]) -> None:
        """Keep a row; one that is there already, as a neighbour of what was asked for, counts once."""
        self.held += _size(pictures) - _size(self.rows.pop(place, {}))
        self.rows[place] = pictures

    def take(self, place: Place) -> dict[str, bytes]:
        """A row that was just put, after what is too much was dropped."""
        pictures = self.rows[place]
        while self.held > self.most and self.rows:
            self.held -= _size(self.rows.popitem(last=False)[1])
        return pictures


def _by_id(row: Row) -> dict[str, bytes]:
    """The pictures of a row of `candidates`, or of `evaluation`."""
    if "edits" in row:
        return {SOURCE: row["source_image"]} | {edit["edit_id"]: edit["image"] for edit in row["edits"]}
    return {SOURCE: row["source_image"], row["evaluation_id"]: row["edited_image"]}


def _size(pictures: dict[str, bytes]) -> int:
    return sum(map(len, pictures.values()))


def for_browser(image: bytes) -> tuple[bytes, str]:
    """A picture for a browser, and its media type: people see what models do, upright, sRGB, on white.

    ImageError if it has to be changed for that, and is broken.
    """
    plain = to_plain(image)
    return plain, media_type(plain)
