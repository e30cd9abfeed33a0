"""Two parties, either of which is killed at any moment: the run ends with the parameters of an unbroken one.

    python benchmarks/kills.py [--kills 100] [--every 3 12] [--seed 0]

A server and a client train on digits over gRPC with mutual TLS, in processes of their own, a checkpoint every few
steps. After the first step, at random times, one of the two, or both, are killed (SIGKILL, or SIGTERM in one case of
four), and started again as a person would: with the same command and `--train.resume true`. The run is as long as the
kills need. At the end both parties' digests are compared with those of a local run, and the steps in the metrics with
1, 2, 3, ...: none was lost, none made twice. It writes `benchmarks/results/kills.json`; the exit code is 1 where
anything differs.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import write

from nscjax.remote import certs as certificates

ROOT = Path(__file__).resolve().parent.parent
ROLES = ("server", "client")
LEFT_S = 600
"""Seconds that the run may take to its first step, and after the last kill."""


def command(folder: Path, role: str, address: str, steps: int) -> list[str]:
    """Returns the command of a party, the same at every start."""
    settings = {
        "config": "configs/quickstart.toml", "run_dir": folder / role, "role": role, "train.steps": steps,
        "train.checkpoint_every": 20, "train.log_every": 1, "train.eval_every": steps, "train.resume": "true",
        "remote.address": address, "remote.certs": folder / "certs", "remote.patience_s": 600,
    }  # fmt: skip
    return [
        sys.executable,
        "train/main.py",
        *(word for key, value in settings.items() for word in (f"--{key}", str(value))),
    ]


class Party:
    """A party's process, started again and again."""

    def __init__(self, words: list[str], said: Path) -> None:
        """Starts it; what it says goes to a file."""
        self._words, self._said = words, said
        # What was compiled once is kept: a start takes seconds all the same.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(said.parent / "cache")}
        self._environment = os.environ | cache | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.start()

    def start(self) -> None:
        """Starts it anew."""
        with self._said.open("ab") as file:
            self.process = subprocess.Popen(self._words, cwd=ROOT, stdout=file, stderr=file, env=self._environment)

    def is_running(self) -> bool:
        """Returns whether it still goes; raises where it ended with an error of its own."""
        if (code := self.process.poll()) is None:
            return True
        if code not in (0, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise RuntimeError(f"exit code {code}: {self._said.read_text()[-2000:]}")
        return False

    def kill(self, number: int) -> None:
        """Ends it by a signal and waits for that."""
        self.process.send_signal(number)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:  # it waits for the other one
            self.process.kill()
            self.process.wait()


def steps_of(run_dir: Path) -> list[int]:
    """Returns the steps in the metrics of a run."""
    path = run_dir / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [line["step"] for line in lines if line["kind"] == "train"]


def last_step(run_dir: Path) -> int:
    """Returns the last step in the metrics; a line may be under way."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum('"kind": "train"' in line for line in lines)


def broken_run(folder: Path, kills: int, every: tuple[float, float], steps: int, seed: int) -> dict[str, Any]:
    """Makes the run with its kills; returns how it went."""
    chance = random.Random(seed)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    certificates.make(folder / "certs")
    parties = {role: Party(command(folder, role, address, steps), folder / f"{role}.txt") for role in ROLES}
    counts = dict.fromkeys((*ROLES, "both"), 0)
    _wait(lambda: last_step(folder / "client") or not all(party.is_running() for party in parties.values()), folder)
    for i in range(kills):
        time.sleep(chance.uniform(*every))
        chosen = chance.choice(list(counts))
        if not all(party.is_running() for party in parties.values()):
            break  # the run came to its end before the kills did
        counts[chosen] += 1
        number = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
        doomed = [role for role in ROLES if chosen in (role, "both")]
        for role in doomed:
            parties[role].kill(number)
        for role in chance.sample(doomed, len(doomed)):
            parties[role].start()
        print(f"kill {i + 1}: {chosen} by {number}, after step {last_step(folder / 'client')}", flush=True)
    _wait(lambda: not any(party.is_running() for party in parties.values()), folder)
    return counts


def _wait(is_over: Callable[[], Any], folder: Path) -> None:
    """Waits for the first step, or the end; not for ever."""
    ends = time.monotonic() + LEFT_S
    while not is_over():
        if time.monotonic() > ends:
            raise RuntimeError(f"nothing in {LEFT_S} s: see {folder}")
        time.sleep(0.5)


def main() -> int:
    """Makes both runs, compares them, writes the result, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every", type=float, nargs=2, default=(3.0, 12.0), help="seconds between two, at random")
    parser.add_argument("--steps", type=int, default=4000, help="of the run: more than the kills leave time for")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    started = time.monotonic()
    counts = broken_run(folder, options.kills, tuple(options.every), options.steps, options.seed)
    local = command(folder, "local", "127.0.0.1:1", options.steps)
    subprocess.run(local, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    summaries = {name: json.loads((folder / name / "summary.json").read_text()) for name in (*ROLES, "local")}
    digests = {name: summary["params_sha256"] for name, summary in summaries.items()}
    is_whole = {name: steps_of(folder / name) == list(range(1, options.steps + 1)) for name in summaries}
    rows = {
        "kills": sum(counts.values()), **{f"of {name}": count for name, count in counts.items()},
        "steps": options.steps, "same_parameters": len(set(digests.values())) == 1,
        "every_step_once": all(is_whole.values()), "seconds": time.monotonic() - started,
    }  # fmt: skip
    print(rows)
    if rows["kills"] >= parser.get_default("kills"):  # a short try is no result
        write("kills", rows, seeds=[options.seed])
    return 0 if rows["same_parameters"] and rows["every_step_once"] else 1


if __name__ == "__main__":
    sys.exit(main())
