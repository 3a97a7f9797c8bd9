"""S3 that is not Amazon's, or not at its best: real clients against a real server behind a door that refuses."""

import copy
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from conftest import bucket_for
from faulty_s3 import FaultyS3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import free_port

from hive_ray import storage
from hive_ray.files import s3, s3_errors, storage_check


@pytest.fixture
def door(moto_address, tmp_path, monkeypatch):
    """A door to the S3 server, and `root`, an address behind it in a bucket of its own."""
    monkeypatch.setenv("HIVE_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    with FaultyS3(moto_address) as door:
        door.root = bucket_for(tmp_path, moto_address, monkeypatch)
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
        yield door


@pytest.fixture
def named_door(door, monkeypatch):
    """The door at an address in which buckets have hosts; Python's resolver does not know them, curl's does."""
    resolve = socket.getaddrinfo

    def resolve_localhost(host, *arguments, **options):
        return resolve("127.0.0.1" if str(host).endswith(".localhost") else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_localhost)
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.named_address)
    return door


@pytest.fixture
def at_once(monkeypatch):
    """What is waited for is waited for in vain, at once."""
    monkeypatch.setattr(storage, "S3_TIMEOUT_S", 0.0)
    monkeypatch.setattr(s3, "MAX_ATTEMPTS", 2)


def bucket_of(door) -> str:
    return s3.split(door.root)[0]


def use_all(root: str, tmp_path: Path) -> None:
    """Write small and in parts, read, copy both ways, list by both clients and remove."""
    small, large = storage.join(root, "model", "small"), storage.join(root, "model", "large")
    storage.write_text(small, "snow")
    storage.write_bytes(large, bytes(12 << 20))
    assert storage.read_text(small) == "snow"
    assert storage.read_bytes(large) == bytes(12 << 20)
    (tmp_path / "local").write_bytes(b"ice")
    storage.copy_file(str(tmp_path / "local"), storage.join(root, "model", "copy"))
    storage.copy_file(large, storage.join(root, "model", "again"))
    assert storage.list_files(root) == ["model/again", "model/copy", "model/large", "model/small"]
    assert sorted(storage._s3_objects(root)) == ["model/again", "model/copy", "model/large", "model/small"]
    assert (storage.fetch_folder(storage.join(root, "model")) / "copy").read_bytes() == b"ice"
    storage._remove_s3_files(storage._s3_tree(root))
    assert storage._s3_tree(root) == []


# Checksums


def test_a_server_that_refuses_checksums_is_sent_none(door, tmp_path):
    door.no_checksums = True
    use_all(door.root, tmp_path)
    storage_check.check_storage(door.root)
    assert not [
        name for request in door.requests for name in request.headers if "checksum" in name or "sdk-che" in name
    ]


def test_the_process_keeps_its_environment(door):
    storage.write_text(storage.join(door.root, "a"), "snow")
    assert not set(s3.CHECKSUMS.values()) & set(os.environ)


@pytest.mark.parametrize("where", ["variable", "profile"])
def test_checksums_that_are_asked_for_are_sent_by_both_clients(door, monkeypatch, tmp_path, where):
    if where == "variable":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    else:
        (tmp_path / "aws").write_text("[default]\nrequest_checksum_calculation = when_supported\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    storage.write_text(storage.join(door.root, "a"), "snow")
    assert door.requests[-1].headers["x-amz-trailer"] == "x-amz-checksum-crc64nvme"
    s3.client().put_object(Bucket=bucket_of(door), Key="b", Body=b"snow")
    assert any(name.startswith("x-amz-checksum-") for name in door.requests[-1].headers)


def test_a_refused_checksum_is_named_at_once_with_its_variable(door, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    door.no_checksums = True
    started = time.monotonic()
    with pytest.raises(s3_errors.S3Error, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        storage.write_text(storage.join(door.root, "a"), "snow")
    assert time.monotonic() - started < storage.S3_TIMEOUT_S / 4


def test_a_client_sent_to_another_process_sends_no_checksums_either(door):
    """Ray Train's controller and workers are sent the client of the driver."""
    door.no_checksums = True
    files, inside = storage.filesystem(storage.join(door.root, "checkpoints"))
    (sent := copy.copy(files)).create_dir(inside)
    with sent.open_output_stream(f"{inside}/a") as stream:
        stream.write(b"snow")
    assert sent.get_file_info(f"{inside}/a").size == 4
    assert sent.equals(files)


def test_amazon_is_sent_what_its_tools_send(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    found = s3.server()
    assert (found.is_amazon, found.region) == (True, "eu-north-1")
    assert dict(found.checksums) == dict.fromkeys(s3.CHECKSUMS.values(), "when_supported")
    assert s3.file_system("bucket").region == "eu-north-1"
    assert (s3.uses_virtual_host("bucket"), s3.uses_virtual_host("my.bucket")) == (True, False)


@pytest.mark.parametrize(
    ("endpoint", "is_amazon"),
    [
        ("https://s3.eu-west-1.amazonaws.com", True),
        ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", True),
        ("https://s3.cn-north-1.amazonaws.com.cn", True),
        ("https://account.r2.cloudflarestorage.com", False),
        ("https://amazonaws.com.example.org", False),
        ("http://minio:9000/s3.amazonaws.com", False),
    ],
)
def test_an_endpoint_is_known_by_its_host(endpoint, is_amazon):
    assert s3.S3Server(endpoint, None, (), True, None).is_amazon == is_amazon


# Addresses


def test_an_address_in_which_buckets_have_hosts(named_door, monkeypatch, tmp_path):
    named_door.virtual_only = True
    monkeypatch.setenv(s3.ADDRESSING, "virtual")
    use_all(named_door.root, tmp_path)
    hosts = {request.headers["host"].rpartition(":")[0] for request in named_door.requests}
    assert hosts == {f"{bucket_of(named_door)}.localhost"}


def test_the_profile_s_addressing_is_both_clients(named_door, monkeypatch, tmp_path):
    (tmp_path / "aws").write_text("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    named_door.virtual_only = True
    use_all(named_door.root, tmp_path)
    monkeypatch.setenv(s3.ADDRESSING, "path")  # goes before the profile
    named_door.virtual_only = False
    named_door.operations()
    storage.write_text(storage.join(named_door.root, "a"), "snow")
    assert sorted(storage._s3_objects(named_door.root)) == ["a"]
    assert {request.headers["host"].rpartition(":")[0] for request in named_door.requests} == {"localhost"}


def test_a_server_that_wants_buckets_in_hosts_is_named_with_the_variable(named_door):
    named_door.virtual_only = True
    with pytest.raises(
        OSError, match=r"cannot be used: writing .*SecondLevelDomain.*HIVE_RAY_S3_ADDRESSING to virtual"
    ):
        storage_check.check_storage(named_door.root)


def test_an_addressing_that_is_none_is_refused(door, monkeypatch):
    monkeypatch.setenv(s3.ADDRESSING, "dns")
    with pytest.raises(ValueError, match="HIVE_RAY_S3_ADDRESSING is 'dns'; it is auto, path or virtual"):
        storage.write_text(storage.join(door.root, "a"), "snow")


@pytest.mark.parametrize(
    "name", ["with space/é+ %41.txt", "ŝtormo & (1)=2;a,b@c.txt", "percent%2Fslash", "a'b!c*d~e.txt"]
)
def test_any_name_comes_back(door, name):
    path = storage.join(door.root, name)
    storage.write_text(path, "snow")
    assert storage.read_text(path) == "snow"
    assert storage.list_files(door.root) == [name]
    assert list(storage._s3_objects(door.root)) == [name]
    assert (storage.fetch_folder(door.root) / name).read_text() == "snow"
    storage._remove_s3_files([path])
    assert storage.list_files(door.root) == []


NAMES = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(names=st.sets(NAMES.map(lambda name: f"x{name.replace('/', '-')}y"), min_size=1, max_size=4))
def test_any_set_of_names_is_listed_alike_and_removed(door, names):
    for name in names:
        storage.write_text(storage.join(door.root, "any", name), name)
    folder = storage.join(door.root, "any")
    assert storage.list_files(folder) == sorted(storage._s3_objects(folder)) == sorted(names)
    assert {path.name: path.read_text() for path in storage.fetch_folder(folder).iterdir()} == {n: n for n in names}
    storage._remove_s3_files(storage._s3_tree(folder))
    assert storage._s3_tree(folder) == []


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_a_bucket_with_dots(named_door, monkeypatch, tmp_path, style):
    monkeypatch.setenv(s3.ADDRESSING, style)
    s3.client().create_bucket(Bucket="my.dotted.bucket")
    use_all("s3://my.dotted.bucket/root", tmp_path)


def test_an_endpoint_with_a_path(door, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{door.address}/gateway")
    door.answer = (403, "AccessDenied")
    with pytest.raises(OSError, match="/gateway, bucket"):
        storage.write_text(storage.join(door.root, "a"), "snow")
    with pytest.raises(OSError, match="AccessDenied"):
        storage._s3_objects(door.root)
    assert {request.path.split("?")[0] for request in door.requests} == {
        f"/gateway/{door.root.removeprefix('s3://')}/a",
        f"/gateway/{bucket_of(door)}",
    }


def test_the_variable_for_s3_alone_goes_before_the_other(door, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", door.address)
    storage.write_text(storage.join(door.root, "a"), "snow")
    assert list(storage._s3_objects(door.root)) == ["a"]


def test_a_session_s_token_is_sent_by_both_clients(door, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "for-an-hour")
    storage.write_text(storage.join(door.root, "a"), "snow")
    storage._s3_objects(door.root)
    assert [request.headers.get("x-amz-security-token") for request in door.requests] == ["for-an-hour"] * 2


def test_the_profile_s_region_is_signed_by_both_clients(door, monkeypatch, tmp_path):
    (tmp_path / "aws").write_text("[default]\nregion = oss-cn-shanghai\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    storage.write_text(storage.join(door.root, "a"), "snow")
    storage._s3_objects(door.root)
    assert ["/oss-cn-shanghai/s3/" in request.headers["authorization"] for request in door.requests] == [True, True]


def test_without_credentials_requests_are_not_signed(door, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage.write_text(storage.join(door.root, "a"), "snow")
    storage._s3_objects(door.root)
    assert ["authorization" in request.headers for request in door.requests] == [False, False]
    door.answer = (403, "AccessDenied")
    with pytest.raises(OSError, match="no credentials are set, so requests are not signed: set AWS_ACCESS_KEY_ID"):
        storage_check.check_storage(door.root)


def test_both_clients_take_the_proxy(door, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, door.address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid:9000")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    storage.write_text(storage.join(door.root, "a"), "snow")
    assert list(storage._s3_objects(door.root)) == ["a"]
    assert {request.headers["host"] for request in door.requests} == {"storage.invalid:9000"}


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that no system trusts, and its key."""
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", made, "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_server_with_a_certificate_of_its_own(door, monkeypatch, tmp_path, certificate, variable):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    door.socket = context.wrap_socket(door.socket, server_side=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address.replace("http:", "https:"))
    started = time.monotonic()
    with pytest.raises(OSError, match="set AWS_CA_BUNDLE"):
        storage_check.check_storage(door.root)
    with pytest.raises(OSError, match="set AWS_CA_BUNDLE"):
        storage._s3_objects(door.root)
    assert time.monotonic() - started < storage.S3_TIMEOUT_S / 4
    monkeypatch.setenv(variable, str(certificate[0]))
    use_all(door.root, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "AWS_ENDPOINT_URL begins with http:// or https://"),
        ("AWS_SECRET_ACCESS_KEY", "secret\n", "AWS_SECRET_ACCESS_KEY begins or ends with white space"),
        ("AWS_ENDPOINT_URL", " http://127.0.0.1:9000", "AWS_ENDPOINT_URL begins or ends with white space"),
        ("AWS_PROFILE", "nobody", r"could not be found; look at AWS_PROFILE"),
    ],
)
def test_settings_that_cannot_be_are_named(door, monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words) as raised:
        storage_check.check_storage(door.root)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("address", ["s3://", "s3:///folder", "s3://no bucket/folder"])
def test_an_address_without_a_bucket_is_named(door, address):
    with pytest.raises(ValueError, match="names no bucket: an address is s3://bucket/folder"):
        storage_check.check_storage(address)


# Removal


def written(root: str, *names: str) -> list[str]:
    for name in names:
        storage.write_text(storage.join(root, name), "snow")
    return [storage.join(root, name) for name in names]


def test_what_says_that_a_folder_is_whole_goes_first_and_what_says_of_what_it_is_last(door):
    written(door.root, "manifest.json", "data/a", "data/b", "dropped", "building.json")
    door.operations()
    storage.remove_tree(door.root)
    changes = [operation for operation in door.operations() if not operation.startswith("GET")]
    assert changes == ["DELETE", "POST?delete", "DELETE", "DELETE"]
    assert storage._s3_tree(door.root) == []


@pytest.mark.parametrize(
    "refusal",
    [
        (501, "NotImplemented"),
        (400, "MalformedXML"),
        (405, "MethodNotAllowed"),
        (403, "SignatureDoesNotMatch"),
        (404, "NoSuchKey"),
    ],
)
def test_a_server_without_delete_objects_is_asked_once(door, refusal):
    door.no_delete_objects = refusal
    addresses = written(door.root, "a", "b", "c d é")
    door.operations()
    storage._remove_s3_files(addresses)
    assert door.operations() == ["POST?delete", "DELETE", "DELETE", "DELETE"]
    again = written(door.root, "a", "b")
    door.operations()
    storage._remove_s3_files([*again, storage.join(door.root, "is not there")])
    assert door.operations() == ["DELETE", "DELETE", "DELETE"]
    assert storage._s3_tree(door.root) == []


def test_a_server_that_wants_an_md5_is_sent_one(door):
    door.wants_md5 = True
    addresses = written(door.root, "a", "b", "c")
    door.operations()
    storage._remove_s3_files(addresses)
    assert door.operations() == ["POST?delete"]
    assert storage._s3_tree(door.root) == []


def test_what_may_not_be_removed_is_named(door):
    addresses = written(door.root, "a", "b")
    door.answer, door.answered = (403, "AccessDenied"), ("POST", "DELETE")
    with pytest.raises(
        OSError, match=r"root/a cannot be removed: .*AccessDenied.*may not do this: allow .*DeleteObject"
    ):
        storage._remove_s3_files(addresses)
    door.answer = None
    door.operations()
    storage._remove_s3_files(addresses)
    assert door.operations() == ["POST?delete"]  # a refusal of everything says nothing about DeleteObjects


def test_removal_goes_on_where_s3_fails_now_and_then(door, monkeypatch):
    addresses = written(door.root, *[f"part-{number:02d}" for number in range(30)])
    door.no_delete_objects, door.rate = (501, "NotImplemented"), 0.3
    storage._remove_s3_files(addresses)
    door.rate = 0.0
    assert storage._s3_tree(door.root) == []
    assert door.failed > 5


def test_empty_objects_that_stand_for_folders_are_removed_too(door):
    files, inside = storage.filesystem(door.root)
    files.create_dir(f"{inside}/checkpoints/ray")
    written(door.root, "checkpoints/a")
    storage._remove_s3_files(storage._s3_tree(storage.join(door.root, "checkpoints")))
    assert not storage.exists(storage.join(door.root, "checkpoints"))


# Open uploads


def open_upload(bucket: str, key: str) -> None:
    asked = s3.client()
    upload = asked.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    asked.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 << 20))


def test_open_uploads_of_killed_processes_are_ended(door):
    bucket, run = bucket_of(door), storage.join(door.root, "run")
    for key in ("root/run/a", "root/run/b/c é", "root/run-of-others/a"):
        open_upload(bucket, key)
    storage.write_bytes(storage.join(run, "a"), b"whole")
    door.rewrite = begun(3000)
    assert storage.abort_uploads(run, older_than_s=3600) == 0
    door.rewrite = begun(4000)
    assert storage.abort_uploads(run, older_than_s=3600) == 2
    assert storage.abort_uploads(run, older_than_s=3600) == 0
    left = s3.client().list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["root/run-of-others/a"]
    assert storage.read_text(storage.join(run, "a")) == "whole"


def begun(age_s: float) -> Callable[[bytes], bytes]:
    """The server's answers with uploads that began so long ago; it gives them all one date."""
    moment = (datetime.now(UTC) - timedelta(seconds=age_s)).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return lambda answer: re.sub(rb"(?<=<Initiated>)[^<]*", moment.encode(), answer)


@pytest.mark.parametrize("refusal", [(501, "NotImplemented"), (400, "InvalidRequest"), (403, "AccessDenied")])
def test_a_server_that_lists_no_uploads_is_passed_over(door, refusal):
    door.answer = refusal
    assert storage.abort_uploads(door.root, older_than_s=0) == 0


def test_a_local_folder_has_no_uploads(tmp_path):
    assert storage.abort_uploads(str(tmp_path), older_than_s=0) == 0


# What is waited for

STATUSES = [
    (301, "PermanentRedirect", False, "AWS_REGION"),
    (400, "InvalidArgument", False, "AWS_ENDPOINT_URL"),
    (400, "AuthorizationHeaderMalformed", False, "AWS_REGION"),
    (400, "ExpiredToken", False, "credentials have ended"),
    (400, "RequestTimeout", True, "run the same command again"),
    (401, "Unauthorized", False, "AWS_ACCESS_KEY_ID"),
    (403, "AccessDenied", False, "may not do this"),
    (403, "InvalidAccessKeyId", False, "to credentials that this server knows"),
    (403, "SignatureDoesNotMatch", False, "to credentials that this server knows"),
    (403, "RequestTimeTooSkewed", False, "clock"),
    (404, "NoSuchBucket", False, "make the bucket"),
    (405, "MethodNotAllowed", False, "AWS_ENDPOINT_URL"),
    (408, "RequestTimeout", True, "run the same command again"),
    (409, "BucketAlreadyExists", False, "AWS_ENDPOINT_URL"),
    (411, "MissingContentLength", False, "AWS_ENDPOINT_URL"),
    (412, "PreconditionFailed", False, "AWS_ENDPOINT_URL"),
    (413, "EntityTooLarge", False, "AWS_ENDPOINT_URL"),
    (416, "InvalidRange", False, "AWS_ENDPOINT_URL"),
    (425, "TooEarly", True, "run the same command again"),
    (429, "TooManyRequests", True, "run the same command again"),
    (500, "InternalError", True, "run the same command again"),
    (501, "NotImplemented", False, "AWS_ENDPOINT_URL"),
    (502, "BadGateway", True, "run the same command again"),
    (503, "SlowDown", True, "run the same command again"),
    (503, "ServiceUnavailable", True, "run the same command again"),
    (504, "GatewayTimeout", True, "run the same command again"),
    (505, "HTTPVersionNotSupported", False, "AWS_ENDPOINT_URL"),
    (507, "XMinioStorageFull", True, "make room"),
]


@pytest.mark.parametrize(("status", "code", "passes", "words"), STATUSES)
def test_what_passes_is_waited_for_and_what_lasts_is_not(door, at_once, status, code, passes, words):
    """Of each operation, by Arrow's client and by botocore's."""
    door.answer = (status, code)
    path, (bucket, key) = storage.join(door.root, "a"), s3.split(storage.join(door.root, "a"))
    files, inside = s3.file_system(bucket, attempts=1), f"{bucket}/{key}"

    def write():
        with files.open_output_stream(inside, compression=None) as stream:
            stream.write(b"snow")

    def read():
        with files.open_input_stream(inside, compression=None) as stream:
            stream.read()

    acts = {
        "write": write,
        "list": lambda: storage._s3_objects.__wrapped__(door.root),
        "remove": lambda: s3.remove_objects(bucket, [key]),
    }
    if status != 404:  # to a HEAD, that is a file that is not there
        acts["read"] = read
    told = {}
    for name, act in acts.items():
        with pytest.raises(OSError, match="AWS Error") as raised:
            act()
        told[name] = not s3_errors.is_permanent(str(raised.value))
    if code == "RequestTimeout" and status == 400:
        del told["read"]  # a HEAD has no words, and 400 lasts
    assert told == dict.fromkeys(told, passes)
    with pytest.raises(s3_errors.S3Error, match=words) as raised:
        storage.write_text(path, "snow")
    assert f"{door.address}, bucket '{bucket}', path addresses, region us-east-1" in str(raised.value)


def test_what_lasts_costs_no_time_and_is_asked_once(door):
    door.answer = (501, "NotImplemented")
    started = time.monotonic()
    with pytest.raises(s3_errors.S3Error):
        storage.write_text(storage.join(door.root, "a"), "snow")
    assert time.monotonic() - started < storage.S3_TIMEOUT_S / 4
    assert door.operations() == ["PUT"]


def test_what_passes_is_asked_again(door):
    for answer in ((429, "TooManyRequests"), (502, "BadGateway"), (408, "RequestTimeout")):
        door.answer = answer
        failing = time.monotonic()
        door.refusal = lambda request, answer=answer, failing=failing: (
            answer if time.monotonic() - failing < 1.5 else None
        )
        storage.write_text(storage.join(door.root, "a"), answer[1])
        assert storage.read_text(storage.join(door.root, "a")) == answer[1]
        assert time.monotonic() - failing >= 1.5


def test_an_answer_without_words_is_told_with_those_of_a_listing(door):
    refusal = type(door).refusal
    door.refusal = lambda request: refusal(door, request) or (403, "InvalidAccessKeyId", "The key is not known here")
    with pytest.raises(
        s3_errors.S3Error, match=r"HeadObject.*A listing: AWS Error InvalidAccessKeyId .*The key is not known"
    ):
        storage.read_text(storage.join(door.root, "a"))


@pytest.mark.parametrize(
    "nobody", ["http://127.0.0.1:{port}", "http://nobody.invalid:9000", "https://127.0.0.1:{port}"]
)
def test_nobody_there_is_said_with_the_endpoint(door, monkeypatch, at_once, nobody):
    endpoint = nobody.format(port=free_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for act in (storage.exists, storage._s3_objects, storage_check.check_storage):
        with pytest.raises(
            s3_errors.S3Error, match=f"sent to {endpoint}, .*set AWS_ENDPOINT_URL to an address that answers"
        ):
            act(door.root)


def test_https_where_http_is_meant_is_not_waited_for(door, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address.replace("http:", "https:"))
    started = time.monotonic()
    for act in (storage.exists, storage._s3_objects, storage_check.check_storage):
        with pytest.raises(s3_errors.S3Error, match="correct https:// and http:// in AWS_ENDPOINT_URL"):
            act(door.root)
    assert time.monotonic() - started < storage.S3_TIMEOUT_S / 4


def test_no_error_names_a_secret(door, monkeypatch, at_once):
    secrets = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUt", "AWS_SESSION_TOKEN": "FwoGZX"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address.replace("//", "//user:hunter2@"))
    for answer in ((403, "SignatureDoesNotMatch"), (500, "InternalError"), (301, "PermanentRedirect")):
        door.answer = answer
        for act in (storage.exists, storage._s3_objects, storage_check.check_storage):
            with pytest.raises(OSError, match="AWS Error") as raised:
                act(door.root)
            assert not [secret for secret in (*secrets.values(), "hunter2") if secret in str(raised.value)]


# The check before a stage


def test_a_good_storage_is_checked_in_five_requests_and_nothing_is_left(door):
    storage_check.check_storage(door.root)
    assert door.operations() == ["PUT", "HEAD", "GET", "GET", "DELETE"]
    assert storage._s3_tree(door.root) == []


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("PUT", (403, "AccessDenied"), "writing there failed.*may not do this"),
        ("PUT", (404, "NoSuchBucket"), "writing there failed.*make the bucket, or correct its name"),
        ("HEAD", (403, "AccessDenied"), "reading there failed.*may not do this"),
        ("DELETE", (403, "AccessDenied"), "removing there failed.*s3:DeleteObject"),
        ("PUT", (507, "XMinioStorageFull"), "writing there failed.*make room"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_by_what_failed(door, monkeypatch, at_once, method, answer, words):
    door.answer, door.answered = answer, (method,)
    with pytest.raises(OSError, match=rf"{door.root} cannot be used: {words}"):
        storage_check.check_storage(door.root)
    door.answer = None
    if method != "DELETE":
        assert storage._s3_tree(door.root) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (200, r"read other than it was written; the server at .* is no S3.*AWS_ENDPOINT_URL"),
        (404, "writing there failed.*nothing there speaks S3: correct AWS_ENDPOINT_URL"),
        (301, "writing there failed.*correct AWS_ENDPOINT_URL"),
    ],
)
def test_a_server_that_is_no_s3_is_seen(door, status, words):
    door.answer, door.page = (status, "Welcome"), "<html>Welcome</html>"
    with pytest.raises(OSError, match=words):
        storage_check.check_storage(door.root)


def test_a_busy_s3_is_waited_for_at_the_check(door):
    door.fail_for(3.0)
    storage_check.check_storage(door.root)


def test_a_server_that_never_answers_ends_the_check(monkeypatch, door):
    monkeypatch.setattr(storage_check, "CHECK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(storage_check, "UNREACHABLE_TIMEOUT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(OSError, match="set AWS_ENDPOINT_URL to an address that answers"):
            storage_check.check_storage(door.root)
    assert time.monotonic() - started < 40


def test_a_slow_answer_is_awaited(door, monkeypatch):
    """Some servers take longer to join a large upload than the 3 s after which Arrow would give up."""
    refusal = type(door).refusal

    def slowly(door, request):
        if request.method == "PUT":
            time.sleep(5.0)
        return refusal(door, request)

    monkeypatch.setattr(type(door), "refusal", slowly)
    storage.write_text(storage.join(door.root, "a"), "snow")
    assert door.operations() == ["PUT"]


def test_a_local_folder_is_checked_and_nothing_is_left(tmp_path):
    storage_check.check_storage(str(tmp_path / "runs" / "one"))
    assert list((tmp_path / "runs" / "one").iterdir()) == []


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_folder_that_cannot_be_is_named_with_its_flag(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=f"{tmp_path / place} cannot be written to .*: give another folder.* by --run"):
        storage_check.check_storage(str(tmp_path / place))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_so(tmp_path, monkeypatch):
    full = tmp_path / f"{storage_check.PROBE_PREFIX}0"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(storage_check, "unfinished_name", lambda name: full.name)
    with pytest.raises(OSError, match=r"No space left on device.*make room there, or give another folder"):
        storage_check.check_storage(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# The cache


def test_a_home_that_cannot_be_written_to_is_told_with_the_variable(monkeypatch, tmp_path, door):
    monkeypatch.delenv("HIVE_RAY_CACHE")
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(OSError, match=r"cache folder .* cannot be made .*: set HIVE_RAY_CACHE"):
        storage.cache_folder()
    written(door.root, "model/card.json")
    with pytest.raises(OSError, match="set HIVE_RAY_CACHE"):
        storage.fetch_folder(storage.join(door.root, "model"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user without a name")
def test_a_person_without_a_home_is_told_the_variable():
    code = "import os; from hive_ray import storage; os.setuid(54321); storage.cache_folder()"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "HIVE_RAY_CACHE")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "OSError: there is no home folder" in ended.stderr
    assert "set HIVE_RAY_CACHE" in ended.stderr


def test_a_cache_that_is_read_only_still_gives_what_it_has(door, monkeypatch):
    written(door.root, "model/card.json")
    folder = storage.fetch_folder(storage.join(door.root, "model"))
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    assert storage.fetch_folder(storage.join(door.root, "model")) == folder
    written(door.root, "other/card.json")
    with pytest.raises(OSError, match="cannot be written to: set HIVE_RAY_CACHE"):
        storage.fetch_folder(storage.join(door.root, "other"))


def test_a_cache_without_room_is_told_so(door, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 3}))
    written(door.root, "model/card.json")
    with pytest.raises(OSError, match=r"no room for a copy of .*/model \(4 bytes\): make room, or set HIVE_RAY_CACHE"):
        storage.fetch_folder(storage.join(door.root, "model"))


def test_an_object_that_changes_while_it_is_fetched_is_not_kept(door):
    written(door.root, "model/card.json", "model/weights")
    door.rewrite = lambda answer: answer.replace(b"<Size>4<", b"<Size>5<")
    with pytest.raises(OSError, match=r"card.json was listed with 5 bytes and came with 4: it changed while"):
        storage.fetch_folder(storage.join(door.root, "model"))
    assert list((storage.cache_folder() / "folders").iterdir()) == []


def test_copies_that_killed_processes_left_are_swept(door):
    code = (
        "import os; from hive_ray.files import scratch\n"
        "with scratch.temporary_folder('fetch') as mine:\n"
        "    (mine / 'part').write_text('half'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"PYTHONPATH": os.getcwd()})
    (left,) = (storage.cache_folder() / "scratch").iterdir()
    old, new = (storage.cache_folder() / "folders" / name for name in ("tmpold", "tmpnew"))
    for folder in (old, new):
        (folder / "whole").mkdir(parents=True)
    os.utime(old, (0, 0))
    written(door.root, "model/card.json")
    whole = storage.fetch_folder(storage.join(door.root, "model"))
    assert sorted((storage.cache_folder() / "folders").iterdir()) == sorted([whole, new])
    assert not left.exists()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "a//b", "./a"])
def test_an_object_whose_name_leads_elsewhere_is_not_fetched(door, name, tmp_path):
    boto3.Session().client("s3").put_object(Bucket=bucket_of(door), Key=f"root/model/{name}", Body=b"x")
    with pytest.raises(ValueError, match="which is not a valid file name"):
        storage.fetch_folder(storage.join(door.root, "model"))


def test_a_copy_that_breaks_off_leaves_no_object(door):
    target = storage.join(door.root, "copy")

    def breaks(stream) -> None:
        stream.write(b"half")
        raise OSError("the disk was pulled out")

    with pytest.raises(OSError, match="pulled out"):
        storage._upload(target, breaks)
    assert not storage.exists(target)
