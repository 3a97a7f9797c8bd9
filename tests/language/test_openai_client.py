"""What the openai client is given, and what its errors say, against real sockets and no endpoint at all."""

import datetime
import ssl
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from llm_server import PAGE, Chat, refusal
from local_server import LocalServer, free_port

from hive_ray.config import Instructions, Resources
from hive_ray.errors import Stopped
from hive_ray.language import endpoint, openai_client
from hive_ray.language.openai_client import EndpointError, address, check_endpoint, error_message, refused_arguments_in
from hive_ray.pairs.instructions import InstructionWriter

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)


def ask(folder) -> list[dict]:
    settings = Instructions(writer="openai", resources=Resources(num_gpus=0))
    return InstructionWriter(settings, str(folder))([{"caption_id": "1", "caption": "a cat"}])


@pytest.mark.parametrize("key", ["test\n", "  test", "test\r\n", "\ttest \n\n"])
def test_blanks_around_the_key_and_the_address_are_passed_over(chat, monkeypatch, tmp_path, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", f" {chat.address}/\n")
    check_endpoint("m", "instructions.llm")
    assert ask(tmp_path)[0]["instruction"] == "add a hat"


@pytest.mark.parametrize(("given", "seen"), [
    ("127.0.0.1:8715/v1", "without http://"), ("localhost:8000/v1", "without http://"), ("ftp://host/v1", "without http://"),
    ("http:///v1", "and a host"), ("https://", "and a host"), ("", "is empty"), (" \n", "is empty"),
    ("http://host:port/v1", "no address"), ("http://host:99999/v1", "no address"), ("http://[::1/v1", "no address"),
    ("http://a host/v1", "a blank"), ("http://host/v1\nhttp://host/v1", "a blank"),
    ("http://host/v1/chat/completions", "adds /chat/completions by itself"), ("http://host/v1/models/", "adds /models"),
])  # fmt: skip
def test_an_address_that_is_none_is_refused_with_what_is_wanted(monkeypatch, tmp_path, given, seen):
    monkeypatch.setenv("OPENAI_BASE_URL", given)
    for act in (lambda: check_endpoint("m", "instructions.llm"), lambda: ask(tmp_path)):
        with pytest.raises(EndpointError, match=seen) as error:
            act()
        assert "http://localhost:8000/v1" in str(error.value)


def test_openais_own_address_is_taken_where_none_is_set(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert address() == "https://api.openai.com/v1"


class Silent(BaseHTTPRequestHandler):
    """A server that speaks something else."""

    def do_GET(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *args) -> None:
        pass


def both_ways(monkeypatch, folder, url: str) -> list[str]:
    """What the check before a stage says of an address, and what a request does."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    said = []
    for act in (lambda: check_endpoint("m", "instructions.llm"), lambda: ask(folder)):
        with pytest.raises((EndpointError, Stopped), match="the language model is out of reach") as error:
            act()
        assert KEY not in str(error.value)
        said.append(str(error.value))
    return said


def test_a_connection_that_fails_says_why(monkeypatch, tmp_path):
    port = free_port()
    for said in both_ways(monkeypatch, tmp_path, f"http://user:word@127.0.0.1:{port}/v1"):
        assert f"nothing listens at http://127.0.0.1:{port}/v1 ([Errno 111] Connection refused)" in said
        assert "word" not in said
    for said in both_ways(monkeypatch, tmp_path, "http://no-such-host.invalid/v1"):
        assert "no host is known by the name in http://no-such-host.invalid/v1 ([Errno" in said
    with LocalServer(Silent) as server:
        for said in both_ways(monkeypatch, tmp_path, f"{server.address.replace('http', 'https')}/v1"):
            assert "does not speak TLS as it should" in said


def test_a_server_that_hangs_up_on_the_list_of_models_may_answer_all_else(monkeypatch, tmp_path, capsys):
    with LocalServer(Silent) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        check_endpoint("m", "instructions.llm")
        assert "hangs up when it is asked for its models: Connection error: http" in capsys.readouterr().out
        with pytest.raises(Stopped, match=rf"Connection error: {server.address}/v1: "):
            ask(tmp_path)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
def test_a_dead_proxy_is_named_and_its_password_is_not(monkeypatch, tmp_path, variable):
    port = free_port()
    monkeypatch.setenv(variable, f"http://me:word@127.0.0.1:{port}")
    for said in both_ways(monkeypatch, tmp_path, "http://llm.example/v1"):
        name = variable.upper()
        assert f"the proxy http://127.0.0.1:{port} ({name}) does not answer ([Errno 111] Connection refused)" in said
        assert f"correct {name}, or set NO_PROXY for http://llm.example/v1" in said
        assert "word" not in said


@pytest.mark.parametrize("proxy", ["foo://127.0.0.1:9", "socks5://me:word@127.0.0.1:9", "http://127.0.0.1:port"])
def test_a_proxy_that_the_client_cannot_use_is_named(monkeypatch, tmp_path, proxy):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://llm.example/v1")
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(EndpointError, match=r"client of http://llm\.example/v1 cannot be made: .*\(ALL_PROXY") as error:
        ask(tmp_path)
    assert "word" not in str(error.value)


def test_a_header_that_cannot_be_sent_is_named(chat, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_ORG_ID", "org\n")
    for said in both_ways(monkeypatch, tmp_path, chat.address):
        assert "OPENAI_ORG_ID" in said


def test_a_server_that_does_not_answer_is_waited_for_so_long_and_no_longer(monkeypatch):
    class Sleeper(Silent):
        def do_GET(self) -> None:
            time.sleep(2)

    monkeypatch.setattr(openai_client, "CHECK_TIMEOUT_S", 0.2)
    with LocalServer(Sleeper) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        started = time.monotonic()
        with pytest.raises(EndpointError, match="no answer in time"):
            check_endpoint("m", "instructions.llm")
        assert time.monotonic() - started < 3


def certificate_of_nobody(folder: Path) -> str:
    """A file with a key and a certificate that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), today, today.replace(year=2099)
        )
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(secret + made)
    return str(folder / "server.pem")


def test_a_certificate_that_is_not_trusted_is_said_so(monkeypatch, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_of_nobody(tmp_path))
    server = LocalServer(Silent)
    server.handle_error = lambda *error: None  # that the client hangs up
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with server:
        for said in both_ways(monkeypatch, tmp_path, f"{server.address.replace('http', 'https')}/v1"):
            assert "is not trusted ([SSL: CERTIFICATE_VERIFY_FAILED]" in said
            assert "SSL_CERT_FILE" in said


@pytest.mark.parametrize("models", [
    (404, refusal("no such page")), (405, PAGE), (403, refusal("Missing scopes: api.model.read")), (501, "no"),
    (200, {"object": "list", "data": []}), (200, {"data": [{"id": "m"}, {"id": "other"}]}),
])  # fmt: skip
def test_an_endpoint_without_a_list_of_models_is_taken_as_it_is(chat: Chat, capsys, models):
    chat.models = models
    check_endpoint("m", "instructions.llm")
    assert capsys.readouterr().out == ""


def test_a_model_that_is_not_listed_is_said_and_no_more(chat: Chat, capsys):
    chat.models = (200, {"data": [{"id": f"m{number}"} for number in range(7)] + [{"id": None}, 7]})
    check_endpoint("m", "instructions.llm")
    assert "does not list 'm' (instructions.llm), but m0, m1, m2, m3, m4, ...\n" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [PAGE, {"models": []}, [1], {"data": {"id": "m"}}, b"{", b"\xff\x00"])
def test_a_list_of_models_that_is_none_is_shown(chat: Chat, capsys, answer):
    chat.models = (200, answer)
    check_endpoint("m", "instructions.llm")
    assert "returned no list of models but " in capsys.readouterr().out


def test_a_refused_key_is_said_without_the_key(chat: Chat, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chat.models = (401, refusal(f"Incorrect API key provided: {KEY}"))
    with pytest.raises(
        EndpointError, match=r"refuses the key \(OPENAI_API_KEY\): .*401 - Incorrect API key pro"
    ) as error:
        check_endpoint("m", "instructions.llm")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(("body", "words"), [
    (refusal("no")["error"], "no"), ({"message": "no"}, "no"), ({"detail": "no"}, "no"), ("no", "no"),
    ([{"msg": "no"}], "no"),
    ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}, {"loc": ["body", 3], "msg": "x"}]},
     "body.seed: Extra inputs; body.3: x"),
    ({"error": {"message": ""}, "code": 7}, '{"error": {"message": ""}, "code": 7}'), (None, ""), ({}, ""), (7, "7"),
    ("<html><style>a {b: c}</style><h1>404</h1>\n page not found", "404 page not found"), ("x" * 999, "x" * 300),
    ("half \ud83d of it", "half \ufffd of it"),
])  # fmt: skip
def test_the_words_of_a_refusal_are_found_in_any_form(body, words):
    assert error_message(body) == words


def test_arguments_that_a_refusal_is_about_are_found_by_their_whole_names():
    names = ("temperature", "seed")
    assert refused_arguments_in({"param": "seed"}, names) == {"seed"}
    assert refused_arguments_in("Temperature and `seed` are fixed", names) == set(names)
    assert refused_arguments_in({"message": "a seedling, temperatures, min-seed, seed_x"}, names) == set()
