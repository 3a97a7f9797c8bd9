import io
import json
import tarfile
import tracemalloc

import foreign
import numpy as np
import pyarrow as pa
import pytest
import torch
from foreign import picture

from hive_ray import storage
from hive_ray.config import Importing
from hive_ray.images import decode, image_format
from hive_ray.pairs.formats.folders import shared_attention_for_seed
from hive_ray.pairs.formats.imported import ImportedPair, imported_rows
from hive_ray.pairs.formats.pair_reader import read_pairs
from hive_ray.pairs.formats.text_rows import read_prompts
from hive_ray.pairs.formats.writing import WRITERS, parquet_schema
from hive_ray.schemas import IMPORTED, PAIRS, Dropped, to_table

PROMPT = {"input": "a cat", "edit": "make it a dog", "output": "a dog", "url": "https://example.org/cat.jpg"}


def imported(dataset: str, **settings) -> list[dict]:
    settings = Importing(dataset=dataset, **settings)
    return list(imported_rows(read_pairs(settings), settings))


def kept(dataset: str, **settings) -> list[dict]:
    rows = [row for row in imported(dataset, **settings) if not isinstance(row, Dropped)]
    to_table(rows, IMPORTED)
    return rows


def words(row: dict) -> tuple[str, str, str]:
    return row["source_caption"], row["instruction"], row["edited_caption"]


def instruct_pix2pix(root: str) -> None:
    lines = [{"seed": 7, "p2p_threshold": 0.25, "cfg_scale": 9.0, "clip_sim_dir": 0.3}]
    foreign.prompt_folder(root, "0000001", PROMPT, ["7", "3131961357"], lines)
    foreign.prompt_folder(root, "0000002", PROMPT | {"input": "a cat at sea"}, ["12"])
    storage.write_text(storage.join(root, "seeds.json"), '[["0000001", ["7", "3131961357"]], ["0000002", ["12"]]]')


def test_instruct_pix2pix_folders_give_a_pair_a_seed_with_the_bytes_as_they_are(root):
    instruct_pix2pix(root)
    rows = kept(root)
    assert [row["seed"] for row in rows] == [7, 3131961357, 12]
    assert [words(row) for row in rows[1:]] == [
        ("a cat", "make it a dog", "a dog"), ("a cat at sea", "make it a dog", "a dog"),
    ]  # fmt: skip
    assert rows[0]["source_image"] == storage.read_bytes(storage.join(root, "0000001", "7_0.jpg"))
    assert rows[0]["edited_image"] == storage.read_bytes(storage.join(root, "0000001", "7_1.jpg"))
    assert {row["origin"] for row in rows} == {"imported"}


def test_shared_attention_is_the_metadata_s_or_what_the_generator_drew_for_the_seed(tmp_path):
    instruct_pix2pix(str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3131961357)
        drawn = 0.1 + torch.rand(()).item() * (0.9 - 0.1)  # as InstructPix2Pix's generate_img_dataset.py draws it
    assert [row["shared_attention"] for row in kept(str(tmp_path))[:2]] == [0.25, drawn]
    assert 0.1 <= shared_attention_for_seed(5) <= 0.9


@pytest.mark.parametrize("key", ["input", "caption"])
def test_a_caption_may_be_called_input_or_caption(tmp_path, key):
    foreign.prompt_folder(str(tmp_path), "0", {key: "a cat", "edit": "make it a dog", "output": "a dog"}, ["1"])
    storage.write_text(str(tmp_path / "seeds.json"), '[["0", [1]]]')
    assert [words(row) for row in kept(str(tmp_path))] == [("a cat", "make it a dog", "a dog")]


def hive_training(root: str) -> None:
    for part, folder in (("part_0_blip_prompt_new", "00/0000001"), ("part_1_blip_prompt_new", "01/0000002")):
        place = storage.join(root, part)
        foreign.prompt_folder(place, folder, {"instruction": f"{part} make it snow"}, ["5"])
        storage.write_text(storage.join(place, "seeds.json"), json.dumps([[*folder.split("/"), ["5"]]]))
    for name, seed in (("a", 1), ("b", 2)):
        storage.write_bytes(storage.join(root, "cycle", f"{name}.jpg"), picture(seed, "JPEG"))
    forward = {"instruction": "add a dog", "source_img": "cycle/a.jpg", "edited_img": "cycle/b.jpg"}
    back = {"instruction": "remove the dog", "source_img": "cycle/b.jpg", "edited_img": "cycle/a.jpg"}
    foreign.json_lines(storage.join(root, "training_cycle.jsonl"), [forward, back])


def test_hive_gives_its_three_parts(root):
    hive_training(root)
    rows = kept(root)
    assert [row["instruction"] for row in rows] == [
        "add a dog", "remove the dog", "part_0_blip_prompt_new make it snow", "part_1_blip_prompt_new make it snow",
    ]  # fmt: skip
    assert rows[0]["source_image"] == rows[1]["edited_image"] == picture(1, "JPEG")
    assert [row["shared_attention"] for row in rows] == [0, 0, 0, 0]  # nobody knows how they were drawn


def test_a_jsonl_may_have_ultraedits_keys_and_pictures_elsewhere(root):
    row = {"edit_prompt": "make it snow", "source_image": "a.png", "edited_image": "b.png", "mask_image": "NONE"}
    foreign.json_lines(storage.join(root, "lists", "mine.jsonl"), [row])
    storage.write_bytes(storage.join(root, "lists", "pictures", "a.png"), picture(1))
    storage.write_bytes(storage.join(root, "lists", "pictures", "b.png"), picture(2))
    for pictures in ("pictures", storage.join(root, "lists", "pictures")):
        (found,) = kept(storage.join(root, "lists", "mine.jsonl"), pictures=pictures)
        assert (found["instruction"], found["source_image"]) == ("make it snow", picture(1))


@pytest.mark.parametrize("write", [foreign.parquet, foreign.arrow])
@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([foreign.clip_filtered(1)], ("a cat 1", "make it a dog", "a dog 1")),
        ([foreign.hq_edit(1)], ("a market 1", "Add futuristic elements", "a futuristic market 1")),
        ([foreign.ultra_edit(1)], ("a horse 1", "give it a hat", "a horse with a hat 1")),
        ([foreign.magic_brush("1", 0)], ("", "edit 0 of 1", "")),
        ([{"input_image": picture(1), "edit_prompt": "e", "edited_image": picture(2)}], ("", "e", "")),
    ],
    ids=["clip_filtered", "hq_edit", "ultra_edit", "magic_brush", "diffusers"],
)
def test_the_columns_of_published_datasets_are_known(tmp_path, write, rows, wanted):
    ending = "parquet" if write is foreign.parquet else "arrow"
    write(str(tmp_path / "data" / f"train-00000-of-00001.{ending}"), rows)
    (row,) = kept(str(tmp_path))
    assert words(row) == wanted
    assert row["source_image"] in rows[0].values()
    assert row["edited_image"] in rows[0].values()
    assert row["source_image"] == next(v for name, v in rows[0].items() if isinstance(v, bytes))  # the source is first


def test_hugging_face_files_are_read_from_anywhere_in_order_and_one_split_alone(root):
    for name, seeds in (("train-00000-of-00002", (1, 5)), ("train-00001-of-00002", (9,)), ("dev-00000", (20,))):
        foreign.parquet(storage.join(root, "data", f"{name}.parquet"), [foreign.clip_filtered(s) for s in seeds])
    captions = [row["source_caption"] for row in kept(root)]
    assert captions == ["a cat 1", "a cat 5", "a cat 9"]
    assert [row["source_caption"] for row in kept(root, split_name="dev")] == ["a cat 20"]
    assert len(kept(root, split_name="")) == 4


def test_the_inverse_that_hq_edit_gives_is_kept(tmp_path):
    foreign.parquet(str(tmp_path / "train.parquet"), [foreign.hq_edit(1)])
    assert kept(str(tmp_path))[0]["inverse_instruction"] == "Remove futuristic elements"


def test_the_turns_of_a_magic_brush_session_share_a_split(tmp_path):
    sessions = [str(number) for number in range(60)]
    turns = [foreign.magic_brush(session, turn) for session in sessions for turn in range(3)]
    foreign.parquet(str(tmp_path / "train.parquet"), turns)
    rows = kept(str(tmp_path), rank_rate=0.3, test_rate=0.3)
    splits = [{row["split"] for row in rows if row["instruction"].endswith(f" of {session}")} for session in sessions]
    assert all(len(found) == 1 for found in splits)
    assert set.union(*splits) == {"train", "rank", "test"}


def test_an_edit_and_its_inverse_in_a_jsonl_share_a_split(tmp_path):
    lines = []
    for number in range(60):
        pair = [f"{number}_{name}.png" for name in "ab"]
        for which, name in enumerate(pair):
            (tmp_path / name).write_bytes(picture(2 * number + which))
        for (source, edited), instruction in ((pair, f"add {number}"), (pair[::-1], f"remove {number}")):
            lines.append({"instruction": instruction, "source_img": source, "edited_img": edited})
    foreign.json_lines(str(tmp_path / "pairs.jsonl"), lines)
    rows = kept(str(tmp_path / "pairs.jsonl"), rank_rate=0.3, test_rate=0.3)
    assert [row["split"] for row in rows[::2]] == [row["split"] for row in rows[1::2]]
    assert {row["split"] for row in rows} == {"train", "rank", "test"}


def found(**changed) -> ImportedPair:
    return ImportedPair(**{"instruction": "e", "source_image": picture(1), "edited_image": picture(2)} | changed)


def test_what_cannot_be_kept_is_dropped_with_its_reason():
    pairs = [
        found(), found(instruction=" \n"), found(instruction=None), found(edited_image=None), found(source_image=b""),
        found(edited_image=picture(1)), found(edited_image=b"no picture"), found(source_caption="another"),
        found(instruction=" e "), found(edited_image=picture(3)),
    ]  # fmt: skip
    rows = list(imported_rows(pairs, Importing()))
    assert [getattr(row, "reason", None) for row in rows] == [
        None, "instruction_missing", "instruction_missing", "picture_missing", "picture_missing", "pictures_are_equal",
        "picture_unreadable", "duplicate", "duplicate", None,
    ]  # fmt: skip


def test_ids_are_the_content_s_and_other_kinds_of_pictures_become_png():
    (row,), (same,) = (list(imported_rows([found(source_image=picture(1, "WEBP"))], Importing())) for _ in range(2))
    assert row == same
    assert image_format(row["source_image"]) == "png"
    np.testing.assert_array_equal(decode(row["source_image"]), decode(picture(1, "WEBP")))
    (other,) = imported_rows([found(edited_image=picture(3))], Importing())
    assert other["pair_id"] != row["pair_id"]


def test_no_more_are_read_than_wanted():
    def pairs():
        yield from (found(), found(), found(instruction="f"))
        raise AssertionError("read on")

    rows = list(imported_rows(pairs(), Importing(num_pairs=2)))
    assert [getattr(row, "reason", None) for row in rows] == [None, "duplicate", None]


def test_a_large_dataset_is_not_held_in_memory(tmp_path):
    heavy = [foreign.clip_filtered(2 * n, original_image=picture(2 * n) + bytes(200_000)) for n in range(100)]
    foreign.parquet(str(tmp_path / "train.parquet"), heavy)
    del heavy
    tracemalloc.start()
    settings = Importing(dataset=str(tmp_path))
    before = pa.total_allocated_bytes()
    most = 0
    for _ in imported_rows(read_pairs(settings), settings):
        most = max(most, tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before)
    tracemalloc.stop()
    assert most < 12_000_000  # of 20


def test_the_test_jsonl_of_hive_gives_prompts_of_the_test_split(root):
    storage.write_bytes(storage.join(root, "evaluation", "a.jpg"), picture(1, "JPEG"))
    storage.write_bytes(storage.join(root, "evaluation", "broken.jpg"), b"x")
    lines = [{"instruction": "make it snow", "source_img": name} for name in ("a.jpg", "b.jpg", "a.jpg", "broken.jpg")]
    foreign.json_lines(storage.join(root, "test.jsonl"), [*lines, {"instruction": "", "source_img": "a.jpg"}])
    first, *dropped = read_prompts(Importing(prompts=storage.join(root, "test.jsonl")))
    assert (first["instruction"], first["split"], first["source_caption"]) == ("make it snow", "test", "")
    assert first["source_image"] == picture(1, "JPEG")
    assert [row.reason for row in dropped] == [
        "picture_missing", "duplicate", "picture_unreadable", "instruction_missing",
    ]  # fmt: skip


def text_file(name: str, content: str):
    return lambda folder: storage.write_text(str(folder / name), content)


def nameless(folder):
    foreign.prompt_folder(str(folder), "0", {"caption": "a cat", "target": "a dog"}, ["1"])
    storage.write_text(str(folder / "seeds.json"), '[["0", ["1"]]]')


def tar(folder):
    with tarfile.open(folder / "train.tar", "w") as shard:
        member = tarfile.TarInfo("0001.jpg")
        shard.addfile(member, io.BytesIO(b""))


PAIR_LINE = '{"instruction": "e", "source_img": "a.jpg", "edited_img": "b.jpg"}\n'


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (nameless, "", r"0/prompt\.json holds caption, target, but the instruction is wanted under edit .* or instruc"),
        (text_file("0/prompt.json", "{}"), "", r"prompt folders but no seeds\.json.*run .* prepare_dataset\.py on it"),
        (text_file("seeds.json", '["0"]'), "", r"seeds\.json: wanted \[folder, seeds\] or .*, not 0"),
        (text_file("readme.md", ""), "", r"no known layout: wanted seeds\.json, .*\.jsonl, .*; found readme\.md"),
        (text_file("a.zip", ""), "a.zip", r"a\.zip is in no known layout: .*a\.zip is an archive; unpack it"),
        (
            text_file("a.jsonl", PAIR_LINE + '{"instr'), "a.jsonl",
            r"1 picture_missing, 1 not_json(.*\n)+.*a\.jsonl, line 2: not JSON",
        ),
        (text_file("a.jsonl", "[1]"), "a.jsonl", r"1 not_an_object\n.*a\.jsonl, line 1: a JSON array"),
        (
            text_file("a.jsonl", PAIR_LINE), "a.jsonl",
            r"1 picture_missing\n.*line 1: source.*'a\.jpg' is not .*importing\.pictures \('\.'\) to the",
        ),
        (text_file("a.jsonl", PAIR_LINE.replace("instruction", "text")), "a.jsonl", r"no instruction or edit or ed"),
        (
            text_file("test.jsonl", '{"instruction": "e", "source_img": "a.jpg"}'), "test.jsonl",
            r"test\.jsonl, line 1 has a source picture and no edited_img.*give the file as importing\.prompts",
        ),
        (text_file("train.parquet", "PAR1"), "", r"train\.parquet cannot be read"),
        (
            lambda folder: foreign.parquet(str(folder / "train.parquet"), [{"image": b"1", "text": "e"}]), "",
            r"has the columns image, text, as no known dataset \(.*MagicBrush: instruction, source_img, target_img",
        ),
        (
            lambda folder: foreign.parquet(str(folder / "FreeForm_0-00000.parquet"), [foreign.ultra_edit(1)]), "",
            r"no file of the split 'train', but 1 others \(FreeForm_0-.*set importing\.split_name",
        ),
        (
            lambda folder: foreign.parquet(
                str(folder / "train.parquet"), [foreign.clip_filtered(1, original_image=None)]
            ), "", r"can be kept: 1 picture_missing",
        ),
        (tar, "", r"train\.tar, key 0001 has jpg; wanted 0001\.source\.png, .* and 0001\.json"),
    ],
)  # fmt: skip
def test_a_dataset_that_is_not_understood_is_named_with_what_is_wanted(tmp_path, make, name, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        imported(str(tmp_path / name))


def test_a_dataset_that_is_not_there_or_not_named_is_said_so(root):
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist; correct the path"):
        imported(storage.join(root, "nothing"))
    with pytest.raises(ValueError, match=r"importing\.dataset is empty"):
        imported("")


def pairs(kind: str = "PNG") -> list[dict]:
    """Two pairs of one instruction, the twin of the second, and two without captions, seeds or other words."""
    row = dict(
        pair_id="0", instruction_id="i", instruction="make it a dög", source_caption="a cat", edited_caption="a dog",
        source_image=picture(0, kind), edited_image=picture(1, kind), weight=1.0, seed=2**62, shared_attention=0.5,
        clip_image=0.75, clip_source_text=0.25, clip_edited_text=0.5, clip_direction=0.125, origin="generated",
        split="train",
    )  # fmt: skip
    second = row | dict(pair_id="1", seed=2**62 + 1, edited_image=picture(2, kind))
    twin = second | dict(
        pair_id="2", instruction="make it a cat", source_caption="a dog", edited_caption="a cat", origin="cycle",
        source_image=second["edited_image"], edited_image=second["source_image"],
    )  # fmt: skip
    bare = row | dict(seed=0, shared_attention=0.0, source_caption="", edited_caption="", origin="imported")
    bare |= dict(instruction_id="j", instruction="make it snow")
    return [
        row, second, twin, bare | dict(pair_id="3", source_image=picture(3, kind)),
        bare | dict(pair_id="4", source_image=picture(4, kind)),
    ]  # fmt: skip


SAME = ("instruction", "source_caption", "edited_caption", "seed", "shared_attention", "split")


def written(root: str, format: str, rows: list[dict], most_bytes: int = 2000) -> list[dict]:
    assert WRITERS[format](root, iter(rows), PAIRS, most_bytes) == len(rows)
    return kept(root, rank_rate=0.45, test_rate=0.45)


@pytest.mark.parametrize("format", WRITERS)
def test_what_is_written_is_read_as_the_same_pairs(root, format):
    rows = pairs()
    back = written(root, format, rows)
    assert [[row[name] for name in SAME] for row in back] == [[row[name] for name in SAME] for row in rows]
    assert [row["origin"] == "cycle" for row in back] == [row["origin"] == "cycle" for row in rows]
    for row, again in zip(rows, back, strict=True):
        for name in ("source_image", "edited_image"):
            difference = decode(row[name]).astype(int) - decode(again[name]).astype(int)
            assert abs(difference).mean() < (8 if format == "instruct_pix2pix" else 1e-9)


@pytest.mark.parametrize(("format", "kind"), [("parquet", "PNG"), ("webdataset", "PNG"), ("instruct_pix2pix", "JPEG")])
def test_pictures_survive_byte_for_byte(tmp_path, format, kind):
    rows = pairs(kind)
    back = written(str(tmp_path), format, rows)
    for name in ("source_image", "edited_image"):
        assert [row[name] for row in back] == [row[name] for row in rows]


@pytest.mark.parametrize(("format", "ending"), [("parquet", ".parquet"), ("webdataset", ".tar")])
def test_files_hold_as_much_as_they_may(tmp_path, format, ending):
    one = sum(len(pairs()[0][name]) for name in ("source_image", "edited_image"))
    written(str(tmp_path), format, pairs(), most_bytes=2 * one + 50)
    assert sum(name.endswith(ending) for name in storage.list_files(str(tmp_path))) == 3


def test_instruct_pix2pix_can_read_its_folders(tmp_path):
    written(str(tmp_path), "instruct_pix2pix", pairs())
    seeds = json.loads((tmp_path / "seeds.json").read_text())
    twice = [str(2**62), str(2**62 + 1)]
    assert seeds == [["0000000", twice], ["0000001", twice[1:]], ["0000002", ["0"]], ["0000003", ["0"]]]
    for name, numbers in seeds:  # as edit_dataset.py and compute_metrics.py open it
        prompt = json.loads((tmp_path / name / "prompt.json").read_text())
        assert {"input", "edit", "output"} <= prompt.keys()
        for number in numbers:
            assert all(
                image_format((tmp_path / name / f"{number}_{which}.jpg").read_bytes()) == "jpg" for which in (0, 1)
            )
    line = json.loads((tmp_path / "0000000" / "metadata.jsonl").read_text().splitlines()[1])
    assert line == {
        "seed": 2**62 + 1, "p2p_threshold": 0.5, "clip_sim_0": 0.25, "clip_sim_1": 0.5, "clip_sim_dir": 0.125,
        "clip_sim_image": 0.75,
    }  # fmt: skip


def test_shards_of_two_kinds_of_pictures_are_refused(tmp_path):
    mixed = [*pairs()[:1], *pairs("JPEG")[1:]]
    with pytest.raises(ValueError, match=r"pair 1 has .*jpg.*those before it .*png.*export parquet instead"):
        WRITERS["webdataset"](str(tmp_path), mixed, PAIRS, 10**6)


def test_diffusers_columns_come_first():
    assert parquet_schema(PAIRS).names[:3] == ["input_image", "edit_prompt", "edited_image"]


def test_hugging_face_datasets_shows_pictures_and_a_train_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    written(str(tmp_path / "out"), "parquet", pairs())
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    rows = loaded["train"]
    assert rows.column_names[:3] == ["input_image", "edit_prompt", "edited_image"]
    assert rows["edit_prompt"][:] == [row["instruction"] for row in pairs()]
    np.testing.assert_array_equal(np.asarray(rows[1]["input_image"]), decode(pairs()[1]["source_image"]))
    np.testing.assert_array_equal(np.asarray(rows[1]["edited_image"]), decode(pairs()[1]["edited_image"]))


def test_webdataset_reads_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    written(str(tmp_path), "webdataset", pairs())
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [sample["source.png"] for sample in samples] == [row["source_image"] for row in pairs()]
    assert [json.loads(sample["json"])["instruction"] for sample in samples] == [r["instruction"] for r in pairs()]


def test_hugging_face_datasets_reads_the_shards(tmp_path):
    datasets = pytest.importorskip("datasets")
    written(str(tmp_path / "out"), "webdataset", pairs())
    rows = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    np.testing.assert_array_equal(np.asarray(rows[2]["edited.png"]), decode(pairs()[2]["edited_image"]))
    assert rows[2]["json"]["instruction"] == "make it a cat"


def test_a_folder_that_hugging_face_datasets_saved_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [foreign.embedded(foreign.hq_edit(seed)) for seed in (1, 5)]
    features = datasets.Features(
        {name: datasets.Image() if name.endswith("_image") else datasets.Value("string") for name in rows[0]}
    )
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "disk"))
    saved.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
    for folder in ("disk", "hub"):
        back = kept(str(tmp_path / folder))
        assert [row["source_image"] for row in back] == [picture(1), picture(5)]
        assert [row["source_caption"] for row in back] == ["a market 1", "a market 5"]
