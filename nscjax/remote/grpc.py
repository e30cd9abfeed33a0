"""The transport over gRPC: one call a message, mutual TLS, the client known by its certificate.

A call's headers arrive before its message: the time from the one to the other, at the receiver, is what the link takes
for the bytes, without latency and without a clock that both share. The server tells the request's with the reply's
headers. In a unary call headers and message are one write, of which TLS seals the first `RECORD_BYTES` as a whole: of
those nothing is seen. A client that `measures` sends its headers first, for some tenths of a millisecond more a call.

Plain text is for tests and for links that are private already; it is refused on any address but loopback.
"""

import concurrent.futures
import datetime as dt
import ipaddress
import math
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from cryptography import x509
from grpc.experimental import ChannelOptions

from nscjax import check
from nscjax.remote.transport import Handler, RefusedError, Reply, Transfer, UnreachableError

METHOD = "/nscjax.Split/Call"
OVERHEAD_BYTES = 1 << 16
"""Room for the envelope around a frame."""

SECONDS = struct.Struct("<d")
SECONDS_KEY = "request-seconds-bin"
"""Header of a reply: how long the request took."""

RECORD_BYTES = 1 << 14
"""The most that TLS seals at a time (RFC 8446, section 5.1)."""

LONGEST_CALL_S = 86_400.0
"""The longest deadline of a call that a server takes."""

KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
RETRYABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
)


def _options(max_bytes: int) -> list[tuple[str, int]]:
    limit = max_bytes + OVERHEAD_BYTES
    return [("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit), *KEEPALIVE]


class Client:
    """A client's way to a server; see `nscjax.remote.transport.Transport`."""

    def __init__(self, address: str, certs: Path | None, max_bytes: int, *, measures: bool = False) -> None:
        """Makes the way; the connection is made by the first call, and anew whenever it has been lost.

        Args:
            address: "host:port".
            certs: folder of `ca.pem`, `client.pem` and `client.key`; None for plain text, on loopback alone.
            max_bytes: the largest frame.
            measures: whether small requests are timed as well.

        Raises:
            InputError: a certificate is missing, damaged or expired, or plain text was asked for on another address.
        """
        self._address = address
        self._unseen_bytes = 0 if measures or certs is None else RECORD_BYTES
        options = [
            *_options(max_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 5000),
            (ChannelOptions.SingleThreadedUnaryStream, 1),  # as fast as a unary call
        ]
        if certs is None:
            _require_loopback(address)
            self._channel = grpc.insecure_channel(address, options)
        else:
            authority, certificate, key = _read(certs, "client")
            credentials = grpc.ssl_channel_credentials(authority, key, certificate)
            self._channel = grpc.secure_channel(address, credentials, options)
        if measures:
            stream = self._channel.stream_stream(METHOD)
            self._call = lambda request, timeout: stream(iter((request,)), timeout=timeout)
        else:
            self._call = self._channel.unary_stream(METHOD)

    def call(self, request: bytes, timeout_s: float) -> Reply:
        """Returns the reply, see `nscjax.remote.transport.Transport`."""
        try:
            replies = self._call(request, timeout=timeout_s)
            headers = dict(replies.initial_metadata() or ())
            data, seconds = _timed(replies)
            for _ in replies:  # to its end, or the call is never let go of
                raise ValueError("more than one reply")
            (up_s,) = SECONDS.unpack(headers[SECONDS_KEY])
            if not (math.isfinite(up_s) and 0 <= up_s <= timeout_s):
                raise ValueError("no time that the request can have taken")
            seen_bytes = max(len(request) - self._unseen_bytes, 0)
            return Reply(data, Transfer(seen_bytes, up_s), Transfer(len(data), seconds))
        except (StopIteration, KeyError, ValueError, struct.error) as problem:
            raise RefusedError(f"server at {self._address}: its reply is none of ours") from problem
        except grpc.RpcError as problem:
            code, details = problem.code(), problem.details()
            # Attempts that were given up may still be under way there, up to the server's limit.
            is_busy = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "oncurrent" in (details or "")
            if code in RETRYABLE or is_busy:
                raise UnreachableError(f"server at {self._address}: {code.name.lower()}: {details}") from problem
            raise RefusedError(f"server at {self._address}: {code.name.lower()}: {details}") from problem

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()


class Server:
    """Listens and hands every request to a handler, with the name in the client's certificate."""

    def __init__(self, address: str, certs: Path | None, max_bytes: int, handler: Handler, max_calls: int = 4) -> None:
        """Listens at once.

        Args:
            address: "host:port"; port 0 takes a free one, see `port`.
            certs: folder of `ca.pem`, `server.pem` and `server.key`; None for plain text, on loopback alone.
            max_bytes: the largest frame.
            handler: of requests; called in threads.
            max_calls: the most calls at a time.

        Raises:
            InputError: a certificate is missing, damaged or expired, the address is taken or no address, or plain text
                was asked for.
        """

        def call(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            remaining_s = context.time_remaining()
            if remaining_s is None or remaining_s > LONGEST_CALL_S:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a call has a deadline of at most {LONGEST_CALL_S} s")
            try:
                request, seconds = _timed(requests)
            except StopIteration:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a call is one request")
            reply = handler(request, _name(context))
            context.send_initial_metadata(((SECONDS_KEY, SECONDS.pack(seconds)),))
            yield reply

        method = grpc.stream_stream_rpc_method_handler(call)
        service = grpc.method_handlers_generic_handler("nscjax.Split", {"Call": method})
        # More calls at a time than threads are refused: nothing queues without a bound.
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(max_calls),
            handlers=[service],
            options=[
                *_options(max_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
            maximum_concurrent_rpcs=max_calls,
        )
        try:
            if certs is None:
                _require_loopback(address)
                self.port = self._server.add_insecure_port(address)
            else:
                authority, certificate, key = _read(certs, "server")
                credentials = grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as problem:
            raise check.error("remote.address", address, "a free address of this machine, host:port") from problem
        self._server.start()

    def close(self, grace_s: float = 1.0) -> None:
        """Stops listening; calls under way have `grace_s` seconds."""
        self._server.stop(grace_s).wait()


def _timed(messages: Iterator[bytes]) -> tuple[bytes, float]:
    """Returns the next message and the seconds until it is whole; raises `StopIteration` if there is none."""
    started = time.perf_counter()
    message = next(messages)
    return message, time.perf_counter() - started


def _name(context: grpc.ServicerContext) -> str:
    """Returns the common name in the client's certificate; of plain text, the name of everyone."""
    names = context.auth_context().get("x509_common_name")
    return names[0].decode(errors="replace") if names else "client"


def _read(certs: Path, party: str) -> tuple[bytes, bytes, bytes]:
    """Returns (authority, certificate, key) of a party."""
    paths = [certs / "ca.pem", certs / f"{party}.pem", certs / f"{party}.key"]
    for path in paths:
        if not path.is_file():
            raise check.error(
                "remote.certs", str(certs), f"a folder with {', '.join(path.name for path in paths)}",
                f"{path} is missing: `make certs` makes them.",
            )  # fmt: skip
    authority, certificate, key = (path.read_bytes() for path in paths)
    try:  # to gRPC a damaged file looks like an address that is taken, or a server that is away
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(paths[0])
        context.load_cert_chain(paths[1], paths[2], password="")
        ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    except (ssl.SSLError, ValueError) as problem:
        raise check.error(
            "remote.certs", str(certs), f"ca.pem, and {party}.pem with its own {party}.key, not encrypted",
            f"They are damaged, or the key is another's ({getattr(problem, 'reason', None) or problem}): `make certs` "
            "in an empty folder makes new ones, for all parties.",
        ) from problem  # fmt: skip
    if ends < dt.datetime.now(dt.UTC):
        raise check.error(
            "remote.certs", str(certs), f"certificates that are valid: {paths[1].name} was until {ends:%Y-%m-%d}",
            "`make certs` in an empty folder makes new ones, for all parties.",
        )  # fmt: skip
    return authority, certificate, key


def _require_loopback(address: str) -> None:
    host = address.rpartition(":")[0].strip("[]")
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise check.error(
            "remote.plain_text", True, "false for any address but loopback",
            f"{address} is one that others can listen to: use certificates (`make certs`).",
        )  # fmt: skip
