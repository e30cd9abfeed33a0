"""What two parties cost: a message against a bare gRPC echo, a step against a local one, frames on a recorded link.

    python benchmarks/two_parties.py [--config configs/cifar10_bench.toml] [--rounds 30] [--trace FILE] [--steps 60]

Everything runs on loopback with mutual TLS, the server in a process of its own; data are made up. Echo: the median of
the rounds' ratios, both by turns. Step: a two-party step over a local one, by turns; `bytes` is an echo of as many
bytes as cross in it. Link: messages shaped by the trace, the budget from what was measured so far; in time is a message
that took no longer than the deadline, used are the bytes that came in time, of all that the link could have carried so.
Beside it, frames of one size: the mean of those. It writes `benchmarks/results/two_parties.json`.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import jax
import jax.numpy as jnp
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from deadlines import carried
from record import write
from step import made_data, split_step
from threadpoolctl import threadpool_limits

from nscjax import link as links
from nscjax import remote
from nscjax.remote import certs as certificates
from nscjax.remote import grpc as transport
from train import client as clients
from train import config as configs
from train import loop, messages, party
from train.terminal import Terminal

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000}
WARM = 3
DEADLINE_S = 0.2
LATENCY_S = 0.03


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextlib.contextmanager
def bare_echo(certs: Path, max_bytes: int) -> Iterator[Callable[[bytes], bytes]]:
    """Yields a unary gRPC echo over mutual TLS with nothing of ours."""
    options = [("grpc.max_receive_message_length", max_bytes), ("grpc.max_send_message_length", max_bytes)]
    authority, server_key, server_cert, client_key, client_cert = (
        (certs / name).read_bytes() for name in ("ca.pem", "server.key", "server.pem", "client.key", "client.pem")
    )
    method = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    service = grpc.method_handlers_generic_handler("Echo", {"Call": method})
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=[service], options=options)
    credentials = grpc.ssl_server_credentials([(server_key, server_cert)], authority, require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    channel = grpc.secure_channel(
        f"localhost:{port}", grpc.ssl_channel_credentials(authority, client_key, client_cert), options
    )
    yield channel.unary_unary("/Echo/Call")
    channel.close()
    server.stop(0)


def echoes(certs: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Returns by size the median seconds of a round trip, ours and bare, and the median of the rounds' ratios."""
    listening = transport.Server("localhost:0", certs, max(SIZES.values()), lambda request, _: request)
    ours = transport.Client(f"localhost:{listening.port}", certs, max(SIZES.values()))
    found = {}
    with bare_echo(certs, 2 * max(SIZES.values())) as bare:
        for name, size in SIZES.items():
            request = bytes(size)
            pairs = [
                (timed(lambda: ours.call(request, 60.0)), timed(lambda: bare(request, timeout=60.0)))  # noqa: B023
                for _ in range(rounds + WARM)
            ][WARM:]
            medians = [statistics.median(times) for times in zip(*pairs)]
            ratio = statistics.median(one / other for one, other in pairs)
            found[name] = {"ours_seconds": medians[0], "bare_seconds": medians[1], "ours_over_bare": ratio}
            print(name, found[name], flush=True)
    ours.close()
    listening.close(0)
    return found


class Watched:
    """A way to a server that remembers how every message went."""

    def __init__(self, way: remote.Transport) -> None:
        """Watches a way."""
        self._way = way
        self.replies: list[tuple[float, int, remote.Reply]] = []
        """(when the request left, its bytes, its reply)"""

    def call(self, request: bytes, timeout_s: float) -> remote.Reply:
        """Returns the reply, see `nscjax.remote.Transport`."""
        left = time.monotonic()
        reply = self._way.call(request, timeout_s)
        self.replies.append((left, len(request), reply))
        return reply

    def close(self) -> None:
        """Lets go of the connection."""
        self._way.close()


@contextlib.contextmanager
def client_of(
    config: configs.Config, certs: Path, shape: Callable[[remote.Transport], remote.Transport],
    host: str = "localhost", prefix: Sequence[str] = (),
) -> Iterator:  # fmt: skip
    """Yields (step, its state, the watched way) of a client whose server runs in a process of its own.

    Args:
        config: of the run.
        certs: folder of the certificates.
        shape: puts a link on the way.
        host: at which the server listens.
        prefix: words before the server's command.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"{host}:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        settings = dataclasses.replace(configs.RemoteConfig(), address=address, certs=str(certs))
        config = dataclasses.replace(config, remote=settings, run_dir=f"{folder}/run")
        written = Path(folder) / "config.toml"
        written.write_text(configs.to_toml(config))
        words = ["train/main.py", "--config", str(written), "--role", "server"]
        server = subprocess.Popen([*prefix, sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL)
        config = dataclasses.replace(config, role="client")
        dataset = made_data((32, 32, 3), 10)
        calendar = loop.calendar_of(config, dataset)
        share = party.share(config, dataset, "client", calendar.num_steps)
        measures = config.link.deadline_s is not None
        way = Watched(shape(transport.Client(address, certs, 1 << 28, measures=measures)))
        session = remote.Session(way, "benchmark", timeout_s=600.0, patience_s=600.0)
        session.ask("hello", clients.hello(config, dataset, []), messages.ANSWERS["hello"])
        made = clients.Client(config, dataset, calendar, share, session, Terminal(1, 0))
        try:
            yield made.advance, share.first, way
        finally:
            way.close()
            server.kill()
            server.wait()


def steps(config: configs.Config, certs: Path, rounds: int) -> dict[str, float]:
    """Returns the median seconds of a two-party step, of a local one, and of an echo of the bytes that cross."""
    local, state, *_ = split_step(config, made_data((32, 32, 3), 10))
    listening = transport.Server("localhost:0", certs, 1 << 28, lambda request, _: bytes(len(request)))
    echo = transport.Client(f"localhost:{listening.port}", certs, 1 << 28)
    times: list[tuple[float, float, float]] = []
    with client_of(config, certs, lambda way: way) as (advance, own, way):
        for number in range(rounds + WARM):
            started = time.perf_counter()
            own, _ = advance(own, number)
            jax.block_until_ready(own)
            middle = time.perf_counter()
            state, out = local(state)
            jax.block_until_ready((state, out))
            ended = time.perf_counter()
            _, sent, _ = way.replies[-1]
            times.append((middle - started, ended - middle, timed(lambda: echo.call(bytes(sent), 60.0))))  # noqa: B023
    echo.close()
    listening.close(0)
    times = times[WARM:]
    two_party, alone, crossing = (statistics.median(values) for values in zip(*times))
    ratio = statistics.median(one / other for one, other, _ in times)
    beyond = statistics.median((one - echo) / other for one, other, echo in times)
    found = {"two_party_seconds": two_party, "local_seconds": alone, "bytes_seconds": crossing,
             "two_party_over_local": ratio, "two_party_less_bytes_over_local": beyond}  # fmt: skip
    print(found, flush=True)
    return found


def shaped_by(trace: links.Trace) -> Callable[[remote.Transport], remote.Transport]:
    """Returns what holds messages back as long as a link of this trace, both ways, would."""
    return lambda way: remote.Shaped(way, trace, trace, LATENCY_S)


def on_link(
    parties: contextlib.AbstractContextManager, trace: links.Trace, num_steps: int, latency_s: float = LATENCY_S,
    begun: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns how the messages of a run fared on a link.

    Args:
        parties: as `client_of` makes them.
        trace: of the link, both ways.
        num_steps: of which the first `WARM` do not count.
        latency_s: of a message, beyond what was measured of it.
        begun: when the trace began, on the monotonic clock; by default with the first message.
    """
    in_time, came, carried_bytes, sizes = [], [], [], []
    with parties as (advance, own, way):
        hello_left = way.replies[0][0] if begun is None else begun
        for number in range(num_steps):
            own, metrics = advance(own, number)
            left, num_bytes, reply = way.replies[-1]
            messages_ = (left, num_bytes, reply.up), (None, len(reply.data), reply.down)
            for when, size, transfer in messages_:
                in_time.append(transfer.seconds + latency_s <= DEADLINE_S)
                if when is not None:
                    most = float(_carried(trace, when - hello_left, DEADLINE_S - latency_s))
                    carried_bytes.append(most)
                    came.append(size if in_time[-1] else 0)
            sizes.append((int(metrics.up.num_bytes), int(metrics.down.num_bytes)))
    skip = WARM
    return {
        "messages": 2 * num_steps,
        "share_in_time": statistics.mean(in_time[2 * skip :]),
        "up_share_of_link_used": sum(came[skip:]) / sum(carried_bytes[skip:]),
        "mean_up_bytes": statistics.mean(size[0] for size in sizes[skip:]),
        "mean_down_bytes": statistics.mean(size[1] for size in sizes[skip:]),
    }


def following(config: configs.Config) -> configs.Config:
    """Returns the config with budgets that the link alone sets."""
    wide = dataclasses.replace(config.compress.up, ratio=None, max_rank=256, view="BC,HW")  # more than a link carries
    link = dataclasses.replace(config.link, deadline_s=DEADLINE_S)
    return dataclasses.replace(config, link=link, compress=configs.CompressConfig(wide, wide))


def of_one_size(config: configs.Config, num_bytes: float) -> configs.Config:
    """Returns the config with frames of at most so many bytes, whatever the link does."""
    raw = 4 * config.train.batch_size * 16 * 16 * 32
    same = dataclasses.replace(config.compress.up, ratio=raw / num_bytes, max_rank=256, view="BC,HW")
    return dataclasses.replace(config, compress=configs.CompressConfig(same, same))


@jax.jit
def _carried(trace: links.Trace, at_s: jax.Array, seconds: jax.Array) -> jax.Array:
    """Returns the bytes that a trace carries in some seconds from a time on."""
    return carried(trace, links.advance(trace, links.start(), jnp.asarray(at_s, jnp.float32)), seconds)


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_bench.toml")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--trace", type=Path, help="CSV trace (time_s,mbit_per_s) of the link; by default none is run")
    parser.add_argument("--steps", type=int, default=60, help="on the link")
    options = parser.parse_args()
    config = configs.from_toml(Path(options.config))
    rows: dict[str, Any] = {"config": Path(options.config).name}
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(limits=1, user_api="blas"):
        certs = Path(folder)
        certificates.make(certs)
        rows["echo"] = echoes(certs, 4 * options.rounds)
        rows["step"] = steps(config, certs, options.rounds)
        if options.trace:
            trace = links.read_trace(options.trace)
            shape = shaped_by(trace)
            found = on_link(client_of(following(config), certs, shape), trace, options.steps)
            same = on_link(client_of(of_one_size(config, found["mean_up_bytes"]), certs, shape), trace, options.steps)
            rows["link"] = {"trace": options.trace.stem, "deadline_s": DEADLINE_S, "latency_s": LATENCY_S,
                            "follows_the_link": found, "one_size": same}  # fmt: skip
            print(rows["link"], flush=True)
    write("two_parties", rows, seeds=[0])


if __name__ == "__main__":
    main()
