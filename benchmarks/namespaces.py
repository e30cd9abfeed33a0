"""Two parties in two network namespaces, with real TCP between them at the rate of a recorded trace.

    python benchmarks/namespaces.py --trace FILE [--config configs/cifar10_bench.toml] [--steps 100]

It needs root, `ip netns` and `tc` with tbf, and says so where it has not got them. Both ends of a veth pair have a
token bucket of two packets, whose rate follows the trace; there is no latency but the queue's. As in `two_parties.py`
messages are to arrive within 0.2 s, and beside frames that follow the link there are frames of one size, their mean.
It writes `benchmarks/results/namespaces.json`.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
import two_parties
from record import write
from threadpoolctl import threadpool_limits

from nscjax import check
from nscjax import link as links
from nscjax.remote import certs as certificates
from train import config as configs

SPACES = {"nscjax-client": "10.213.77.1", "nscjax-server": "10.213.77.2"}
"""Names of the namespaces, and their addresses."""

QUEUE = ("burst", "3028", "limit", "4000000")
"""Two packets pass at once; what waits for the rate is not dropped."""

LEAST_MBIT_PER_S = 0.01
"""tbf has no rate of 0."""


def run(*words: str) -> None:
    """Runs a command; raises an `InputError` with its complaint where it fails."""
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise check.error("command", words[0], "Linux with iproute2") from None
    except subprocess.CalledProcessError as problem:
        told = f"{' '.join(words)}: {problem.stderr.strip()}"
        raise check.error("network namespaces", told, "root, and a kernel with namespaces, veth and tbf") from None


@contextlib.contextmanager
def spaces() -> Iterator[None]:
    """Makes two namespaces with a wire between them; they are gone afterwards."""
    with contextlib.ExitStack() as stack:
        for name in SPACES:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        one, other = SPACES
        run("ip", "-n", one, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other)
        for name, address in SPACES.items():
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                run("ip", "-n", name, "link", "set", device, "up")
            # Segments as they are on a wire: offloaded ones are larger than the bucket.
            run("ip", "-n", name, "link", "set", "wire", "gso_max_segs", "1")
            run("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", "rate", "1mbit", *QUEUE)
        yield


@contextlib.contextmanager
def at_rate_of(trace: links.Trace) -> Iterator[float]:
    """Lets both directions follow a trace, over and over; yields when it began, on the monotonic clock."""
    begun, ended = time.monotonic(), threading.Event()
    ends, rates = np.cumsum(np.asarray(trace.seconds, float)), np.asarray(trace.mbit_per_s, float)
    starts, length = [0.0, *ends[:-1]], ends[-1]

    def follow() -> None:
        for turn in itertools.count():
            for start, rate in zip(starts, rates):
                if ended.wait(max(begun + turn * length + start - time.monotonic(), 0)):
                    return
                for name in SPACES:
                    told = f"{1e6 * max(rate, LEAST_MBIT_PER_S):.0f}bit"
                    run("tc", "-n", name, "qdisc", "change", "dev", "wire", "root", "tbf", "rate", told, *QUEUE)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield begun
    finally:
        ended.set()
        thread.join()


def inside(options: argparse.Namespace) -> None:
    """Prints, as the client in its namespace, how messages fare."""
    config, trace = configs.from_toml(Path(options.config)), links.read_trace(options.trace)
    config = two_parties.of_one_size(config, options.size) if options.size else two_parties.following(config)
    prefix = ("ip", "netns", "exec", "nscjax-server")
    parties = two_parties.client_of(config, Path(options.certs), lambda way: way, SPACES["nscjax-server"], prefix)
    with threadpool_limits(limits=1, user_api="blas"):
        found = two_parties.on_link(parties, trace, options.steps, latency_s=0.0, begun=options.begun)
    print(json.dumps(found))


def measured(options: argparse.Namespace, certs: str, size: float) -> dict[str, Any]:
    """Returns how messages fare, from the beginning of the trace: that follow the link, or all of one size."""
    words = ("--trace", str(options.trace), "--config", options.config, "--steps", str(options.steps))
    with at_rate_of(links.read_trace(options.trace)) as begun:
        words += ("--certs", certs, "--begun", str(begun), "--size", str(size))
        command = ["ip", "netns", "exec", "nscjax-client", sys.executable, __file__, *words]
        child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1])


def main() -> int:
    """Measures and writes the result; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="CSV trace (time_s,mbit_per_s) of the link")
    parser.add_argument("--config", default="configs/cifar10_bench.toml")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--certs", help=argparse.SUPPRESS)  # of the process inside: these three
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.begun is not None:
        inside(options)
        return 0
    rows: dict[str, Any] = {"trace": options.trace.stem, "deadline_s": two_parties.DEADLINE_S,
                            "config": Path(options.config).name}  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as folder, spaces():
            certificates.make(Path(folder), hosts=tuple(SPACES.values()))
            rows["follows_the_link"] = measured(options, folder, 0)
            rows["one_size"] = measured(options, folder, rows["follows_the_link"]["mean_up_bytes"])
    except check.InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    write("namespaces", rows, seeds=[0])
    print(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
