"""Real sockets on loopback, real certificates."""

import concurrent.futures
import contextlib
import datetime as dt
import socket
import stat
import threading
import time

import grpc
import pytest

from nscjax.check import InputError
from nscjax.remote import RefusedError, UnreachableError, certs
from nscjax.remote import grpc as transport

MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("certs")
    certs.make(path, client="ada")
    return path


@pytest.fixture(scope="module")
def server(folder):
    def echo(request, name):
        return name.encode() + b":" + request

    listening = transport.Server("127.0.0.1:0", folder, MAX_BYTES, echo)
    yield f"127.0.0.1:{listening.port}"
    listening.close(0)


def call(address, folder, request=b"hello", timeout_s=5.0, **settings):
    client = transport.Client(address, folder, MAX_BYTES, **settings)
    try:
        return client.call(request, timeout_s)
    finally:
        client.close()


@pytest.mark.parametrize("size", [0, 1, 10_000, MAX_BYTES])
def test_bytes_come_back_with_the_name_in_the_certificate(server, folder, size):
    request = bytes(range(256)) * (size // 256)
    reply = call(server, folder, request)
    assert reply.data == b"ada:" + request
    assert reply.up.num_bytes == max(len(request) - transport.RECORD_BYTES, 0)
    assert reply.down.num_bytes == len(reply.data)
    assert 0 <= reply.up.seconds < 5
    assert 0 <= reply.down.seconds < 5


@pytest.fixture
def throttled(server):
    """The address of a proxy that lets through what a link of 2 Mbit/s would, on the way up."""
    host, port = server.split(":")
    listening = socket.create_server(("127.0.0.1", 0))

    def copy(source, sink, bytes_per_s):
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(500):
                time.sleep(len(data) / bytes_per_s if bytes_per_s else 0)
                sink.sendall(data)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection((host, int(port)))
                for pair, rate in (((near, far), 250_000), ((far, near), 0)):
                    threading.Thread(target=copy, args=(*pair, rate), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def test_what_the_link_takes_is_seen_through_tls(throttled, folder):
    """A busy machine may come to look only when all is there, but not five times in a row."""

    def longest(size, measures):
        client = transport.Client(throttled, folder, MAX_BYTES, measures=measures)
        client.call(b"connected", 5.0)
        up = max((client.call(bytes(size), 5.0).up for _ in range(5)), key=lambda up: up.seconds)
        client.close()
        return up

    for size, measures in ((10_000, True), (40_000, True), (40_000, False)):
        up = longest(size, measures)
        assert up.num_bytes == size - (0 if measures else transport.RECORD_BYTES)
        assert up.seconds > 0.6 * up.num_bytes / 250_000


def test_a_call_without_a_deadline_is_refused(server, folder):
    files = [(folder / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")]
    with (
        grpc.secure_channel(server, grpc.ssl_channel_credentials(*files)) as channel,
        pytest.raises(grpc.RpcError) as no,
    ):
        list(channel.unary_stream(transport.METHOD)(b"hello"))
    assert no.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seconds", [float("nan"), -1.0, 100.0])
def test_a_time_that_cannot_be_is_refused(seconds):
    def call_(parts, context):
        context.send_initial_metadata(((transport.SECONDS_KEY, transport.SECONDS.pack(seconds)),))
        yield b"data"

    method = grpc.stream_stream_rpc_method_handler(call_)
    service = grpc.method_handlers_generic_handler("nscjax.Split", {"Call": method})
    other = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[service])
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with pytest.raises(RefusedError, match="none of ours"):
        call(f"127.0.0.1:{port}", None)
    other.stop(0)


def test_a_call_without_a_request_is_refused(server, folder):
    names = "ca.pem", "client.key", "client.pem"
    channel = grpc.secure_channel(
        server, grpc.ssl_channel_credentials(*((folder / name).read_bytes() for name in names))
    )
    with channel, pytest.raises(grpc.RpcError) as refused:
        list(channel.stream_stream(transport.METHOD)(iter(()), timeout=5))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("replies", [(), (b"data",)])
def test_a_reply_that_does_not_tell_the_request_is_refused(replies):
    """A server that is none of ours."""

    def call(parts, context):
        yield from replies

    method = grpc.stream_stream_rpc_method_handler(call)
    other = grpc.server(
        concurrent.futures.ThreadPoolExecutor(1),
        handlers=[grpc.method_handlers_generic_handler("nscjax.Split", {"Call": method})],
    )
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    client = transport.Client(f"127.0.0.1:{port}", None, MAX_BYTES)
    with pytest.raises(RefusedError, match="none of ours"):
        client.call(b"hello", 5.0)
    client.close()
    other.stop(0)


def test_a_message_above_the_limit_is_refused(server, folder):
    with pytest.raises(RefusedError, match="resource_exhausted"):
        call(server, folder, bytes(2 * MAX_BYTES))


def test_a_client_of_another_authority_gets_no_answer(server, tmp_path):
    certs.make(tmp_path)
    with pytest.raises(UnreachableError):
        call(server, tmp_path, timeout_s=2.0)


def test_plain_text_gets_no_answer_from_a_server_with_certificates(server):
    with pytest.raises((UnreachableError, RefusedError)):
        call(server, None, timeout_s=2.0)


def test_a_server_that_is_away_is_unreachable(folder):
    with pytest.raises(UnreachableError, match=r"unavailable|deadline"):
        call("127.0.0.1:1", folder, timeout_s=2.0)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:50551", "example.org:1", "[::]:0"])
def test_plain_text_is_for_loopback_alone(address):
    with pytest.raises(InputError, match=r"remote.plain_text is True; allowed: false for any address but loopback"):
        transport.Client(address, None, MAX_BYTES)
    with pytest.raises(InputError, match=r"remote.plain_text"):
        transport.Server(address, None, MAX_BYTES, lambda request, name: request)


def test_plain_text_on_loopback():
    listening = transport.Server("localhost:0", None, MAX_BYTES, lambda request, name: request)
    assert call(f"localhost:{listening.port}", None).data == b"hello"
    listening.close(0)


def test_a_missing_certificate_is_named(tmp_path):
    with pytest.raises(InputError, match=r"client.pem.*ca.pem is missing: `make certs` makes them"):
        transport.Client("127.0.0.1:1", tmp_path, MAX_BYTES)


@pytest.mark.parametrize("damaged", ["ca.pem", "server.pem", "server.key"])
def test_a_damaged_certificate_is_told_from_an_address(tmp_path, damaged):
    certs.make(tmp_path)
    (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:100])
    with pytest.raises(InputError, match=r"remote.certs .*They are damaged, or the key is another's"):
        transport.Server("127.0.0.1:0", tmp_path, MAX_BYTES, lambda request, name: request)


def test_a_key_of_another_certificate_is_told(tmp_path):
    certs.make(tmp_path)
    (tmp_path / "client.key").write_bytes((tmp_path / "server.key").read_bytes())
    with pytest.raises(InputError, match=r"client.pem with its own client.key.*the key is another's"):
        transport.Client("127.0.0.1:1", tmp_path, MAX_BYTES)


def test_an_expired_certificate_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(certs, "LIFETIME", dt.timedelta(days=-1))
    certs.make(tmp_path)
    with pytest.raises(InputError, match=r"remote.certs .*server.pem was until \d{4}-\d\d-\d\d"):
        transport.Server("127.0.0.1:0", tmp_path, MAX_BYTES, lambda request, name: request)


def test_an_address_that_is_taken_is_refused(server, folder):
    with pytest.raises(InputError, match=r"remote.address"):
        transport.Server(server, folder, MAX_BYTES, lambda request, name: request)


def test_certificates_are_made_once_and_keys_are_private(tmp_path):
    made = certs.make(tmp_path)
    assert sorted(path.name for path in made) == [
        "ca.key", "ca.pem", "client.key", "client.pem", "server.key", "server.pem",
    ]  # fmt: skip
    before = {path: path.read_bytes() for path in made}
    assert certs.make(tmp_path) == []
    assert {path: path.read_bytes() for path in made} == before
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made if path.suffix == ".key")
    (tmp_path / "client.pem").unlink()
    assert sorted(path.name for path in certs.make(tmp_path)) == ["client.key", "client.pem"]
    assert (tmp_path / "ca.pem").read_bytes() == before[tmp_path / "ca.pem"]


def test_more_clients_have_folders_with_all_that_they_need(tmp_path):
    made = certs.make(tmp_path, more=("ada", "grace"))
    assert {path.name for path in (tmp_path / "ada").iterdir()} == {"ca.pem", "client.pem", "client.key"}
    assert (tmp_path / "ada" / "ca.pem").read_bytes() == (tmp_path / "ca.pem").read_bytes()
    assert certs._names(tmp_path / "grace" / "client.pem") == {"grace"}
    assert tmp_path / "grace" / "client.key" in made
    assert certs.make(tmp_path, more=("ada", "grace")) == []
    for name in ("../ada", "", ".."):
        with pytest.raises(InputError, match="name of a client"):
            certs.make(tmp_path, more=(name,))


def test_a_host_that_is_missing_is_added_to_the_servers_certificate(tmp_path):
    certs.make(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    made = certs.make(tmp_path, ("gpu.example.org",))
    assert {path.name for path in made} == {"server.pem", "server.key"}
    assert certs._names(tmp_path / "server.pem") == {*certs.HOSTS, "gpu.example.org"}
    assert all((tmp_path / name).read_bytes() == before[name] for name in ("ca.pem", "client.pem", "client.key"))
    assert certs.make(tmp_path, ("localhost", "gpu.example.org")) == []
