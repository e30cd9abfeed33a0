"""Frames and conversations from strangers: what `wire.decode` and the server make of what nobody would send.

    python benchmarks/fuzz.py [--frames 1000000] [--conversations 5000] [--seed 0]
    python benchmarks/fuzz.py --coverage SECONDS

The stored frames of every payload, changed at random and sealed again (mostly: a checksum stops nobody), are to decode
to a payload or to be refused with a `WireError`. Conversations of a real client with a real server, so many of a
network with one cut and as many of one with two, often broken off and changed at random in one to three places, are to
be answered to the end, and the server is to train on with an unchanged one after them. What else happens is a crash:
the input is kept in `runs/fuzz`, and the exit code is 1. It writes `benchmarks/results/fuzz.json`; memory
that has grown counts from the most that the process had before.

With `--coverage` inputs are grown towards new code by atheris (`pip install -e '.[fuzz]'`), for so many seconds; it
ends with a report of its own at the first crash.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import random
import resource
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "nscjax" / "golden"
KEPT = ROOT / "runs" / "fuzz"
MAX_BYTES = 1 << 20
"""The largest frame, and tensor, that is taken here: what memory is to be bounded by."""

ODD = (-1, 0, 1, 2**31, 2**63, -(2**63), 0.0, float("nan"), float("inf"), "", "x" * 300, b"", b"\xff" * 9, None, True,
       [], [0], [[]], {}, {"a": 1})  # fmt: skip
"""Values for a field that expects another one."""


@functools.cache
def frames() -> list[bytes]:
    """Returns the stored frames, one of every payload."""
    return [path.read_bytes() for path in sorted(GOLDEN.glob("*.frame"))]


def changed(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Returns bytes with one to eight changes: bits, bytes, parts left out, put in, or of another message."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(6):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(found):
                found[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                del found[at : at + chance.choice((1, 2, 4, 64))]
            case 3:
                found[at:at] = chance.randbytes(chance.choice((1, 2, 4, 64)))
            case 4:
                found[at:at] = found[at : at + chance.randrange(64)]
            case 5:
                other = chance.choice(others)
                found[at:] = other[chance.randrange(len(other)) :]
    return bytes(found)


def sealed(frame: bytes) -> bytes:
    """Returns a frame with its own checksum in the place of the last four bytes."""
    return frame[:-4] + zlib.crc32(frame[:-4]).to_bytes(4, "little")


def keep(name: str, data: bytes) -> None:
    """Keeps an input that did what it should not."""
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / name).write_bytes(data)
    print(f"crash: {KEPT.relative_to(ROOT) / name}", flush=True)


def peak_bytes() -> int:
    """Returns the most memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz_frames(count: int, seed: int) -> dict[str, Any]:
    """Returns what became of so many frames."""
    from nscjax import compress, layout, wire

    del compress  # its import makes the payloads known
    chance, stored = random.Random(seed), frames()
    known = [wire.decode(frame) for frame in stored]
    for payload in known:  # what is loaded and compiled once is not a frame's doing
        layout.num_bytes(payload)
    outcomes: Counter[str] = Counter()
    longest, before = 0.0, peak_bytes()
    for i in range(count):
        which = chance.randrange(len(stored))
        frame = changed(stored[which], chance, stored)
        if chance.random() < 0.9:
            frame = sealed(frame)
        like = known[which] if chance.random() < 0.3 else None
        started = time.perf_counter()
        try:
            payload = wire.decode(frame, like=like, max_bytes=MAX_BYTES)
            outcome = "decoded" if len(wire.encode(payload)) == layout.num_bytes(payload) else "crash"
        except wire.WireError:
            outcome = "refused"
        except Exception as problem:
            print(f"{type(problem).__name__}: {problem}"[:300])
            outcome = "crash"
        longest = max(longest, time.perf_counter() - started)
        outcomes[outcome] += 1
        if outcome == "crash":
            keep(f"frame-{seed}-{i}", frame)
        if (i + 1) % 100_000 == 0:
            print(f"{i + 1:,} frames: {dict(outcomes)}", flush=True)
    grown = peak_bytes() - before
    return {"count": count, **outcomes, "longest_seconds": longest, "memory_grown_bytes": grown, "max_bytes": MAX_BYTES}


class Conversations:
    """A server of a small run, and what a client said to one."""

    def __init__(self, folder: Path, is_u_shaped: bool) -> None:
        """Makes a run with a client over gRPC, whose requests are kept, and a fresh server beside it."""
        from nscjax import remote
        from nscjax.remote import envelope
        from nscjax.remote import grpc as transport
        from train import client, server, u_client, u_server
        from train import config as configs

        made_server = u_server.UServer if is_u_shaped else server.Server
        made_client = u_client.UClient if is_u_shaped else client.Client
        self._envelope, self._remote = envelope, remote
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        words = ["--config", str(ROOT / "configs" / "quickstart.toml"), "--train.steps", "3", "--train.eval_every", "3"]
        words += ["--remote.plain_text", "true", "--remote.address", address, "--data.num_test", "100"]
        words += ["--model.second_cut", "conv3"] if is_u_shaped else []
        own = configs.load([*words, "--role", "server", "--run_dir", str(folder / "first")]).config
        spoken: list[bytes] = []
        desk = remote.Desk(made_server(own).serve)

        def listen(data: bytes, name: str) -> bytes:
            spoken.append(data)
            return desk.handle(data, name)

        door = transport.Server(address, None, 1 << 24, listen)
        client.run(configs.load([*words, "--role", "client", "--run_dir", str(folder / "client")]).config, made_client)
        door.close()
        self.requests = [envelope.unpack(data) for data in spoken]
        self.server = made_server(dataclasses.replace(own, run_dir=str(folder / "server")))
        self.faults: list[Exception] = []
        self._desk = remote.Desk(self.server.serve, on_fault=self.faults.append)

    def say(self, messages: Sequence[bytes]) -> list[str]:
        """Returns how every message was answered: a status, or an empty text for what is no answer."""
        found = []
        for data in messages:
            reply = self._envelope.unpack(self._desk.handle(data, "client"))
            self._envelope.check(reply, self._remote.session.REPLY, "reply")
            found.append(reply["status"])
        return found

    def packed(self, requests: Sequence[dict[str, Any]], session: str) -> list[bytes]:
        """Returns the requests as those of a session of its own."""
        return [self._envelope.pack(request | {"session": session}) for request in requests]

    def changed(self, chance: random.Random, session: str) -> list[bytes]:
        """Returns a conversation, or the beginning of one, changed in one to three places."""
        requests = [dict(request) for request in self.requests[: chance.randrange(2, len(self.requests) + 1)]]
        raw: dict[int, bytes] = {}
        for _ in range(chance.choice((1, 1, 2, 3))):
            at = chance.randrange(len(requests))
            match chance.randrange(8):
                case 0:
                    requests.insert(at, dict(requests[at]))
                case 1 if len(requests) > 1:
                    del requests[at]
                case 2:
                    other = chance.randrange(len(requests))
                    requests[at], requests[other] = requests[other], requests[at]
                case 3:
                    requests[at][chance.choice(sorted(requests[at]))] = chance.choice(ODD)
                case 4:
                    raw[at] = self.packed(requests, session)[at]
                case _:
                    requests[at]["body"] = self._changed_body(requests[at]["body"], chance)
        messages = self.packed(requests, session)
        return [changed(data, chance, messages) if i in raw else data for i, data in enumerate(messages)]

    def _changed_body(self, body: Any, chance: random.Random) -> Any:
        if not isinstance(body, bytes):
            return body
        try:
            fields = self._envelope.unpack(body)
        except ValueError:
            return body
        name = chance.choice([*sorted(fields), "extra"])
        value = fields.get(name)
        if isinstance(value, bytes) and value and chance.random() < 0.8:
            fields[name] = changed(value, chance, frames())
            if name == "frame":
                fields[name] = sealed(fields[name])
        elif chance.random() < 0.1:
            fields.pop(name, None)
        else:
            fields[name] = chance.choice(ODD)
        return self._envelope.pack(fields)


def fuzz_conversations(count: int, seed: int, is_u_shaped: bool = False) -> dict[str, Any]:
    """Returns what became of so many conversations."""
    chance, outcomes = random.Random(seed), Counter[str]()
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        spoken = Conversations(Path(folder), is_u_shaped)
        whole = spoken.packed(spoken.requests, "unchanged")
        spoken.say(whole)
        before = peak_bytes()
        for i in range(count):
            messages = spoken.changed(chance, f"{seed}-{i}")
            started = time.perf_counter()
            try:
                with contextlib.redirect_stderr(io.StringIO()):  # the server's lines
                    outcomes.update(f"request {status}" for status in spoken.say(messages))
                is_sound = not spoken.faults
            except Exception as problem:
                print(f"{type(problem).__name__}: {problem}"[:300])
                is_sound = False
            longest = max(longest, time.perf_counter() - started)
            if not is_sound:
                outcomes["crash"] += 1
                keep(f"{'u-shaped-' * is_u_shaped}conversation-{seed}-{i}", b"\n".join(messages))
                spoken.faults.clear()
            if (i + 1) % 500 == 0:
                with contextlib.redirect_stderr(io.StringIO()):
                    again = spoken.say(spoken.packed(spoken.requests, f"unchanged {i}"))
                if set(again) != {"done"}:
                    outcomes["unchanged one refused"] += 1
                    print(f"after conversation {i} an unchanged one is answered {again}")
                print(f"{i + 1:,} conversations: {dict(outcomes)}", flush=True)
        grown = peak_bytes() - before
        threads = threading.active_count()
    return {"count": count, "requests": len(whole), **outcomes, "longest_seconds": longest,
            "memory_grown_bytes": grown, "threads": threads}  # fmt: skip


def fuzz_coverage(seconds: int) -> None:
    """Fuzzes `wire.decode` towards new code; never returns."""
    import atheris

    with atheris.instrument_imports(include=["nscjax"]):
        from nscjax import compress, layout, wire

    del compress  # its import makes the payloads known

    def one(data: bytes) -> None:
        try:
            payload = wire.decode(sealed(data), max_bytes=MAX_BYTES)
        except wire.WireError:
            return
        if len(wire.encode(payload)) != layout.num_bytes(payload):
            raise AssertionError("a frame that decodes is one that is made again")

    corpus = Path(tempfile.mkdtemp(prefix="corpus"))
    for i, frame in enumerate(frames()):
        (corpus / str(i)).write_bytes(frame)
    KEPT.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", f"-artifact_prefix={KEPT}/"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes, writes the result, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--conversations", type=int, default=5_000, help="of either kind of network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage", type=int, metavar="SECONDS", help="coverage-guided, of frames alone")
    options = parser.parse_args()
    if options.coverage:
        fuzz_coverage(options.coverage)
    from record import write

    jobs: dict[str, tuple[int, Callable[[int, int], dict[str, Any]]]] = {
        "frames": (options.frames, fuzz_frames),
        "conversations": (options.conversations, fuzz_conversations),
        "u-shaped conversations": (options.conversations, functools.partial(fuzz_conversations, is_u_shaped=True)),
    }
    rows = {name: fuzz(count, options.seed) for name, (count, fuzz) in jobs.items() if count}
    if all(getattr(options, name) >= parser.get_default(name) for name in ("frames", "conversations")):
        write("fuzz", rows, seeds=[options.seed])  # a short try is no result
    bad = sum(row.get(name, 0) for row in rows.values() for name in ("crash", "unchanged one refused"))
    print(rows)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
