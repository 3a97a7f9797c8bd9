import gzip
import os
import subprocess
import time
from pathlib import Path

import boto3
import pytest

from hive_ray import storage


def test_what_is_written_is_read_and_listed(root):
    storage.write_text(storage.join(root, "a", "b.txt"), "snow")
    storage.write_bytes(storage.join(root, "c.bin"), b"\x00\x01")

    assert storage.read_text(storage.join(root, "a", "b.txt")) == "snow"
    assert storage.read_bytes(storage.join(root, "c.bin")) == b"\x00\x01"
    assert storage.list_files(root) == ["a/b.txt", "c.bin"]
    assert storage.exists(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "nothing"))
    assert storage.list_files(storage.join(root, "nothing")) == []


def test_what_is_hidden_or_beside_a_table_is_no_data(root):
    for name in ("data/part-0.parquet", "__dropped__/part-0.parquet", "data/.part-0.parquet", "data/part-0.json"):
        storage.write_text(storage.join(root, *name.split("/")), "x")
    assert storage.list_data(root, ".parquet", ".arrow") == ["data/part-0.parquet"]


def test_a_name_that_ends_with_gz_changes_no_byte(root):
    packed, there, again = gzip.compress(b"snow"), storage.join(root, "a.gz"), storage.join(root, "b.gz")
    storage.write_bytes(there, packed)
    storage.copy_file(there, again)
    assert storage.read_bytes(there) == storage.read_bytes(again) == packed


def test_a_file_is_replaced_and_nothing_else_is_left(root):
    path = storage.join(root, "manifest.json")
    storage.write_text(path, "old")
    storage.write_text(path, "new")

    assert storage.read_text(path) == "new"
    assert storage.list_files(root) == ["manifest.json"]


def test_a_removed_tree_is_gone_and_its_neighbour_is_not(root):
    storage.write_text(storage.join(root, "one", "manifest.json"), "{}")
    storage.write_text(storage.join(root, "one", "data", "part"), "x")
    storage.write_text(storage.join(root, "one-more", "part"), "y")

    storage.remove_tree(storage.join(root, "one"))
    storage.remove_tree(storage.join(root, "one"))

    assert storage.list_files(root) == ["one-more/part"]


def test_a_stored_folder_replaces_the_old_one_and_comes_back_whole(root, tmp_path):
    local = tmp_path / "model"
    (local / "unet").mkdir(parents=True)
    (local / "card.json").write_text("{}")
    (local / "unet" / "weights").write_bytes(bytes(range(256)))
    target = storage.join(root, "model")
    storage.write_text(storage.join(target, "left-over"), "of the model before")

    storage.store_folder(local, target)

    assert storage.list_files(target) == ["card.json", "unet/weights"]
    fetched = storage.fetch_folder(target)
    assert (fetched / "unet" / "weights").read_bytes() == bytes(range(256))
    assert storage.fetch_folder(target) == fetched
    assert storage.folder_digest(target) == storage.folder_digest(str(local))


def test_a_changed_folder_is_fetched_again_and_has_another_digest(root):
    target = storage.join(root, "model")
    storage.write_text(storage.join(target, "weights"), "one")
    before = storage.folder_digest(target)
    storage.write_text(storage.join(target, "weights"), "two")

    assert (storage.fetch_folder(target) / "weights").read_text() == "two"
    assert storage.folder_digest(target) != before
    assert len(before) == 16


def test_a_folder_that_is_not_there_has_no_digest(root):
    with pytest.raises(FileNotFoundError, match=r"make the model first|give the address"):
        storage.folder_digest(storage.join(root, "nothing"))


def test_local_paths_become_absolute_and_addresses_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/one/") == str(Path(tmp_path) / "runs" / "one")
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"


def test_a_model_is_fetched_from_its_address_and_a_hub_name_is_left_alone(root, tmp_path):
    storage.write_text(str(tmp_path / "model" / "unet" / "config.json"), "{}")
    storage.write_text(str(tmp_path / "model" / "card.json"), "{}")
    address = storage.join(root, "editors", "sft")
    storage.store_folder(tmp_path / "model", address)

    folder = Path(storage.fetch_model(address))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.json")) == ["card.json", "unet/config.json"]
    assert storage.fetch_model("owner/name") == "owner/name"


def test_a_model_of_one_file_is_fetched_alone_and_named_by_its_bytes(root):
    address, beside = storage.join(root, "models", "editor.ckpt"), storage.join(root, "models", "editor.ckpt.txt")
    storage.write_bytes(address, b"weights")
    storage.write_bytes(beside, b"notes")
    file = Path(storage.fetch_model(address))
    assert (file.name, file.read_bytes()) == ("editor.ckpt", b"weights")
    if root.startswith("s3://"):
        assert [path.name for path in file.parent.iterdir()] == ["editor.ckpt"]
    before = storage.file_digest(address)
    storage.write_bytes(address, b"others!")
    assert Path(storage.fetch_model(address)).read_bytes() == b"others!"
    assert storage.file_digest(address) != before
    with pytest.raises(FileNotFoundError):
        storage.file_digest(storage.join(root, "models", "none.ckpt"))


def test_an_s3_that_fails_now_and_then_loses_nothing(faulty_s3):
    s3_root, faulty_s3.rate = faulty_s3.root, 0.3
    for number in range(20):
        storage.write_text(storage.join(s3_root, "model", f"part-{number:02d}"), str(number))
    folder = storage.fetch_folder(storage.join(s3_root, "model"))
    assert [path.read_text() for path in sorted(folder.iterdir())] == [str(number) for number in range(20)]
    storage.remove_tree(storage.join(s3_root, "model"))
    assert not storage.exists(storage.join(s3_root, "model"))
    faulty_s3.rate = 0.0
    assert faulty_s3.failed > 10


def test_an_s3_that_is_away_for_a_while_is_waited_for(faulty_s3):
    s3_root = faulty_s3.root
    storage.write_text(storage.join(s3_root, "a"), "snow")
    faulty_s3.fail_for(3.0)
    started = time.monotonic()
    assert storage.read_text(storage.join(s3_root, "a")) == "snow"
    assert time.monotonic() - started >= 3.0


def test_a_large_object_goes_up_in_parts(s3_root):
    path, data = storage.join(s3_root, "large"), bytes(24 << 20)
    storage.write_bytes(path, data)
    bucket, _, key = path.removeprefix("s3://").partition("/")
    assert "-" in boto3.client("s3").head_object(Bucket=bucket, Key=key)["ETag"]  # S3's mark of several parts
    assert storage.read_bytes(path) == data


def test_the_endpoint_may_stand_in_the_profile(s3_root, moto_address, tmp_path, monkeypatch):
    (tmp_path / "aws").write_text(f"[profile ours]\nendpoint_url = {moto_address}\nregion = us-east-1\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_PROFILE", "ours")
    storage.write_text(storage.join(s3_root, "a"), "snow")
    assert storage.read_text(storage.join(s3_root, "a")) == "snow"


def test_a_bucket_that_is_not_there_is_said_so_at_once(s3_root):
    started = time.monotonic()
    with pytest.raises(OSError, match=r"cannot be listed: .*NoSuchBucket"):
        storage.fetch_folder("s3://nobody-has-this-bucket/model")
    assert time.monotonic() - started < 5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_with_what_to_do_and_nothing_is_left(small_disk, tmp_path):
    large = os.urandom(2**19)
    (tmp_path / "large").write_bytes(large)
    for write in (
        lambda path: storage.write_bytes(path, large),
        lambda path: storage.copy_file(str(tmp_path / "large"), path),
    ):
        path = str(small_disk / "data" / "part-00000.parquet")
        with pytest.raises(OSError, match=r"part-00000.parquet cannot be written: No space left.*free some space"):
            write(path)
        assert storage.list_files(str(small_disk)) == []
    storage.write_text(str(small_disk / "data" / "small"), "fits")


def test_a_name_that_is_too_long_is_an_error_that_says_so(tmp_path):
    with pytest.raises(OSError, match=r"cannot be written: File name too long; choose a shorter path"):
        storage.write_text(str(tmp_path / ("n" * 300)), "")


def test_a_copy_is_whole_or_the_old_file(tmp_path):
    storage.write_text(str(tmp_path / "card.json"), "old")
    with pytest.raises(OSError, match=r"no-such"):
        storage.copy_file(str(tmp_path / "no-such"), str(tmp_path / "card.json"))
    assert storage.read_text(str(tmp_path / "card.json")) == "old"
    assert storage.list_files(str(tmp_path)) == ["card.json"]


def test_json_that_is_not_there_or_not_json_is_none(tmp_path):
    for name, content in {"good": b'{"a": 1}', "empty": b"", "half": b'{"a":', "bytes": b"\xff\xfe"}.items():
        (tmp_path / name).write_bytes(content)
    assert storage.read_json(str(tmp_path / "good")) == {"a": 1}
    for name in ("empty", "half", "bytes", "absent"):
        assert storage.read_json(str(tmp_path / name)) is None


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "config.yaml").write_bytes("schön".encode("utf-16"))
    with pytest.raises(ValueError, match=r"config\.yaml is not UTF-8 text .*; save it as UTF-8"):
        storage.read_text(str(tmp_path / "config.yaml"))
