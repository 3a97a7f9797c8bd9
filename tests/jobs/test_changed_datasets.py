"""A dataset that changes under its name is seen, one that was only copied or touched is kept; exports survive kills."""

import json
import os
import shutil
from pathlib import Path

import foreign
import pytest
from foreign import picture

from hive_ray import storage
from hive_ray.artifacts.building import write_rows
from hive_ray.artifacts.manifest import read_manifest, table_digest
from hive_ray.artifacts.selection import read_rows
from hive_ray.config import Exporting, Importing
from hive_ray.errors import Stopped
from hive_ray.pairs.formats.digests import dataset_digest, legacy_digest
from hive_ray.presets import shapes
from hive_ray.schemas import IMPORTED, PAIRS, PROMPTS
from jobs import export_pairs, import_pairs
from jobs.run import Run


def run_with(root: str, dataset: str, on_mismatch: str = "refuse", exporting=None, **importing) -> Run:
    settings = Importing(dataset=dataset, rank_rate=0.2, test_rate=0.2).model_copy(update=importing)
    changed = {"importing": settings, "exporting": exporting or Exporting()}
    return Run(storage.join(root, "run"), shapes().model_copy(update=changed), on_mismatch)


def write_dataset(folder: str, colour: str = "blue", first: int = 0, number: int = 6) -> str:
    """A JSONL file of pairs beside their pictures, which are of the same size whatever `first` says."""
    rows = []
    for place in range(number):
        for which, name in enumerate("ab"):
            data = picture(first + 2 * place + which)
            padded = data + bytes(1000 - len(data))
            storage.write_bytes(storage.join(folder, f"{place}_{name}.png"), padded)
        rows.append({
            "instruction": f"make circle {place} {colour}", "source_img": f"{place}_a.png",
            "edited_img": f"{place}_b.png",
        })  # fmt: skip
    foreign.json_lines(storage.join(folder, "pairs.jsonl"), rows)
    return storage.join(folder, "pairs.jsonl")


def import_all(run: Run) -> tuple[list[str], dict[str, str]]:
    """The instructions of `imported`, and the digests of both tables."""
    import_pairs.build_imported(run)
    import_pairs.PROMPTS_STAGE.make(run)
    words = [row["instruction"] for row in read_rows(run.path("imported"), IMPORTED)]
    return words, {name: table_digest(run.path(name)) for name in ("imported", "prompts")}


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_words_and_pictures_that_change_in_place_are_refused_and_rebuilt(root, layout):
    folder = storage.join(root, "dataset")
    file = write_dataset(folder)
    run = run_with(root, file if layout == "file" else folder)
    words, before = import_all(run)
    assert words == [f"make circle {number} blue" for number in range(6)]
    write_dataset(folder, "teal", first=100)
    with pytest.raises(
        FileExistsError, match=r"dataset.* has changed since imported was made .*input\.content was .*--rebui"
    ):
        import_all(run)
    words, after = import_all(run_with(root, run.config.importing.dataset, "rebuild"))
    assert words == [f"make circle {number} teal" for number in range(6)]
    assert not set(before.values()) & set(after.values())  # so all that is made of them is made again
    assert import_all(run) == (words, after)


@pytest.mark.parametrize("name", ["4_b.png", "pairs.jsonl"])
def test_one_picture_or_one_word_of_the_same_size_is_seen(root, name):
    file = write_dataset(storage.join(root, "dataset"))
    run = run_with(root, file)
    import_all(run)
    place = storage.join(root, "dataset", name)
    data, other = storage.read_bytes(place), picture(999)
    changed = data.replace(b"0 blue", b"0 teal") if name == "pairs.jsonl" else other + bytes(1000 - len(other))
    storage.write_bytes(place, changed)
    with pytest.raises(FileExistsError, match=r"has changed since imported was made of it"):
        import_all(run)


def test_a_dataset_that_was_touched_or_copied_is_kept_and_compared_once(tmp_path, capfd):
    file = write_dataset(str(tmp_path / "dataset"))
    run = run_with(str(tmp_path), file)
    words, digests = import_all(run)
    os.utime(file, (1, 1))
    os.utime(tmp_path / "dataset" / "3_a.png", (1, 1))
    capfd.readouterr()
    assert import_all(run) == (words, digests)
    assert "have other times, so their rows are compared" in capfd.readouterr().out
    assert import_all(run) == (words, digests)
    assert "compared" not in capfd.readouterr().out
    shutil.copytree(tmp_path / "dataset", tmp_path / "copy", copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "dataset")
    (tmp_path / "copy").rename(tmp_path / "dataset")
    assert import_all(run_with(str(tmp_path), file, "rebuild")) == (words, digests)


def test_a_run_of_an_older_version_is_kept_and_rebuilt_with_what_is_known_today(root, capfd):
    file = write_dataset(storage.join(root, "dataset"))
    prompts = storage.join(root, "test.jsonl")
    storage.write_bytes(storage.join(root, "evaluation", "a.png"), picture(1))
    foreign.json_lines(prompts, [{"instruction": "make it snow", "source_img": "a.png"}])
    run = run_with(root, file, prompts=prompts)
    words, _ = import_all(run)
    for name, dataset in (("imported", file), ("prompts", prompts)):
        address = storage.join(run.path(name), "manifest.json")
        manifest = json.loads(storage.read_text(address))
        manifest["fingerprint"]["input.content"] = legacy_digest(dataset)
        if name == "prompts":
            manifest["fingerprint"]["input.imported"] = table_digest(run.path("imported"))
        storage.write_text(address, json.dumps(manifest))
    old = {name: table_digest(run.path(name)) for name in ("imported", "prompts")}
    capfd.readouterr()
    assert import_all(run) == (words, old)
    assert "as an older version knew it, by names and sizes; --rebuild reads it anew" in capfd.readouterr().out
    rebuilt, new = import_all(run_with(root, file, "rebuild", prompts=prompts))
    assert rebuilt == words
    assert not set(new.values()) & set(old.values())
    content = read_manifest(run.path("imported")).fingerprint["input.content"]
    assert content == dataset_digest(file, ".") != legacy_digest(file)


def test_prompts_and_their_pictures_that_change_in_place_are_refused(tmp_path):
    file = write_dataset(str(tmp_path / "dataset"))
    prompts = str(tmp_path / "test.jsonl")
    before, after = (picture(seed) + bytes(1000 - len(picture(seed))) for seed in (1, 3))
    storage.write_bytes(str(tmp_path / "evaluation" / "a.png"), before)
    foreign.json_lines(prompts, [{"instruction": "make it snow", "source_img": "a.png"}])
    run = run_with(str(tmp_path), file, prompts=prompts)
    import_all(run)
    storage.write_bytes(str(tmp_path / "evaluation" / "a.png"), after)
    with pytest.raises(FileExistsError, match=r"test\.jsonl has changed since prompts was made of it"):
        import_all(run)
    import_all(run_with(str(tmp_path), file, "rebuild", prompts=prompts))
    assert after in [row["source_image"] for row in read_rows(run.path("prompts"), PROMPTS)]


def test_the_digest_of_a_dataset_follows_its_files(root):
    storage.write_text(storage.join(root, "a.jsonl"), "1")
    digests = [dataset_digest(root, "."), dataset_digest(storage.join(root, "a.jsonl"), ".")]
    storage.write_text(storage.join(root, ".DS_Store"), "Bud1")
    storage.write_text(storage.join(root, "b.txt"), "nobody names it")
    assert dataset_digest(storage.join(root, "a.jsonl"), ".") == digests[1]
    storage.remove_file(storage.join(root, "b.txt"))
    assert dataset_digest(root, ".") == digests[0]
    storage.write_text(storage.join(root, "a.jsonl"), "12")
    assert dataset_digest(root, ".") != digests[0]
    assert dataset_digest(storage.join(root, "a.jsonl"), ".") != digests[1]
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist"):
        dataset_digest(storage.join(root, "nothing"), ".")


@pytest.mark.parametrize("alone", [True, False])
def test_pictures_elsewhere_belong_to_a_dataset(root, alone):
    place, pictures = storage.join(root, "lists"), storage.join(root, "pictures")
    row = {"instruction": "e", "source_image": "a.png", "edited_image": "b.png"}
    foreign.parquet(storage.join(place, "train.parquet"), [row])
    for name in ("a", "b", "c"):
        storage.write_bytes(storage.join(pictures, f"{name}.png"), b"0123456789")
    dataset = storage.join(place, "train.parquet") if alone else place
    before = dataset_digest(dataset, "../pictures")
    assert dataset_digest(dataset, pictures) == before
    storage.write_bytes(storage.join(pictures, "c.png"), b"not named")
    assert dataset_digest(dataset, pictures) == before
    storage.write_bytes(storage.join(pictures, "b.png"), b"9876543210")
    after = dataset_digest(dataset, pictures)
    assert (after != before, after.split("-")[0] == before.split("-")[0]) == (True, True)


def test_an_import_that_keeps_nothing_is_no_table_and_goes_on_with_other_settings(tmp_path):
    file = write_dataset(str(tmp_path / "dataset"))
    lists = tmp_path / "lists" / "pairs.jsonl"
    lists.parent.mkdir()
    Path(file).rename(lists)
    with pytest.raises(ValueError, match=r"can be kept: 6 picture_missing"):
        import_all(run_with(str(tmp_path), str(lists)))
    assert read_manifest(str(tmp_path / "run" / "imported")) is None
    words, _ = import_all(run_with(str(tmp_path), str(lists), pictures="../dataset"))
    assert len(words) == 6


def test_the_manifest_of_an_import_has_an_account_of_every_line(tmp_path):
    file = Path(write_dataset(str(tmp_path / "dataset")))
    file.write_text(file.read_text() + '{"instruction\n7\n')
    (tmp_path / "dataset" / "0_a.png").unlink()
    run = run_with(str(tmp_path), str(file))
    import_all(run)
    made = read_manifest(run.path("imported"))
    assert made.rows_in == 8 == made.rows_out + sum(made.dropped.values())
    assert made.dropped == {"not_an_object": 1, "not_json": 1, "picture_missing": 1}
    assert "pairs.jsonl, line 7" in made.samples["not_json"][0]
    with pytest.raises(Stopped, match=r"5 of the pairs of .*least_kept, 0\.9"):
        import_all(run_with(str(tmp_path), str(file), "rebuild", least_kept=0.9))


# --- Exports under kills ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a process: no code of ours runs after it."""


class Killing:
    """Ends the process, as it were, at the `at`-th call that changes storage, with half of what it does."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.calls = at, 0
        self.acts = {name: getattr(storage, name) for name in ("write_bytes", "remove_file", "remove_tree")}
        for name in self.acts:
            patch.setattr(storage, name, lambda *given, name=name: self.act(name, *given))

    def act(self, name: str, path: str, *given) -> None:
        self.calls += 1
        if self.calls == self.at:
            if name == "write_bytes" and not path.startswith(storage.S3):  # what is left of the file beside
                folder, _, last = path.rpartition("/")
                self.acts[name](f"{folder}/.{last}.0badf00d", b"half")
            if name == "remove_tree":
                for left in storage.list_files(path)[::2]:
                    self.acts["remove_file"](storage.join(path, left))
            raise Killed
        self.acts[name](path, *given)


def export_files(folder: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_files(folder)}


def pair(number: int) -> dict:
    return dict(
        pair_id=str(number), instruction_id=f"i{number}", instruction=f"make it {number}", source_caption="a cat",
        edited_caption="a dog", source_image=picture(2 * number, "JPEG"), edited_image=picture(2 * number + 1, "JPEG"),
        weight=1.0, seed=number, shared_attention=0.5, clip_image=0.75, clip_source_text=0.25, clip_edited_text=0.5,
        clip_direction=0.125, origin="generated", split="train",
    )  # fmt: skip


@pytest.mark.parametrize("format", ["parquet", "instruct_pix2pix", "webdataset"])
@pytest.mark.parametrize("start", ["fresh", "other"])
def test_an_export_that_is_killed_at_any_call_goes_on_and_leaves_nothing(tmp_path, monkeypatch, format, start):
    kill_at_every_call(str(tmp_path), monkeypatch, format, start)


@pytest.mark.parametrize("start", ["fresh", "other"])
def test_an_export_to_s3_that_is_killed_at_any_call_goes_on_and_leaves_nothing(s3_root, monkeypatch, start):
    kill_at_every_call(s3_root, monkeypatch, "parquet", start)


def kill_at_every_call(root: str, monkeypatch: pytest.MonkeyPatch, format: str, start: str) -> None:
    """Start "other": in place of an export of other settings, by --rebuild."""
    source = run_with(root, "")
    write_rows(source.path("pairs"), PAIRS, [pair(number) for number in range(3)], {})
    folder = source.path(f"exports/{format}")
    exporting = Exporting(format=format, shard_megabytes=2)
    run = run_with(root, "", "rebuild" if start == "other" else "refuse", exporting)

    def begin() -> None:
        storage.remove_tree(folder)
        if start == "other":
            export_pairs.build(run_with(root, "", exporting=Exporting(format=format)))

    begin()
    export_pairs.build(run)
    wanted = export_files(folder)
    kills = 0
    while True:
        begin()
        with monkeypatch.context() as patch:
            Killing(patch, kills + 1)
            try:
                export_pairs.build(run)
            except Killed:
                kills += 1
            else:
                break
        export_pairs.build(run)
        assert export_files(folder) == wanted, kills
    assert kills >= 4  # exporting.json, a file, card.json, and the end of exporting.json
