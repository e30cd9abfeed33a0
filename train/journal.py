"""What the host knows of a run: totals in exact integers, lines of metrics, the summary."""

import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nscjax.split import Message
from nscjax.types import PyTree
from train.run_folder import MetricsFile
from train.state import TENSORS, Metrics
from train.terminal import Terminal


@dataclasses.dataclass
class Totals:
    """Totals of a run, exact: Python integers, summed on the host. A checkpoint holds them beside the state.

    Attributes:
        steps: how many were made.
        up_bytes: of all uplink frames of training.
        down_bytes: of all downlink frames.
        up_skipped: how many uplink messages the budget did not afford.
        down_skipped: the same for the downlink.
        second_up_skipped: of these, how many were the second cut's.
        second_down_skipped: the same for the downlink.
        link_seconds: that all messages took.
        wall_seconds: that the run took, all its parts together.
        metrics_bytes: the length of `metrics.jsonl` at the checkpoint.
        envelope_up_bytes: of two parties, all that the client had sent then, frames and what is around them.
        envelope_down_bytes: all that it had received.
    """

    steps: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    up_skipped: int = 0
    down_skipped: int = 0
    link_seconds: float = 0.0
    wall_seconds: float = 0.0
    metrics_bytes: int = 0
    envelope_up_bytes: int = 0
    envelope_down_bytes: int = 0
    second_up_skipped: int = 0
    second_down_skipped: int = 0

    def add(self, metrics: Metrics) -> None:
        """Adds one step."""
        self.steps += 1
        up, down = by_direction(metrics)
        self.up_bytes += num_bytes(up)
        self.down_bytes += num_bytes(down)
        self.up_skipped += num_skipped(up)
        self.down_skipped += num_skipped(down)
        self.second_up_skipped += num_skipped(up[1:])
        self.second_down_skipped += num_skipped(down[1:])
        self.link_seconds += float(metrics.link_seconds)

    def raw_bytes(self, raw_message_bytes: tuple[int, ...]) -> tuple[int, int]:
        """Returns (up, down) what the messages that carried something would have taken in float32.

        Args:
            raw_message_bytes: of one tensor of every cut.
        """
        first, second = (*raw_message_bytes, 0)[:2]
        skipped = (self.up_skipped, self.second_up_skipped), (self.down_skipped, self.second_down_skipped)
        up, down = (
            (self.steps - (of_both - of_second)) * first + (self.steps - of_second) * second
            for of_both, of_second in skipped
        )
        return up, down

    def ratio(self, raw_message_bytes: tuple[int, ...]) -> float:
        """Returns raw float32 bytes over bytes sent, both directions together; a skipped message saves nothing."""
        return sum(self.raw_bytes(raw_message_bytes)) / max(1, self.up_bytes + self.down_bytes)


def by_direction(metrics: Metrics) -> tuple[list[Message], list[Message]]:
    """Returns (up, down) a step's messages; of a U-shaped network the first cut's first."""
    pairs = (metrics.up, metrics.second_up), (metrics.down, metrics.second_down)
    up, down = ([message for message in pair if message is not None] for pair in pairs)
    return up, down


def num_bytes(messages: list[Message]) -> int:
    """Returns the bytes of all frames."""
    return sum(int(message.num_bytes) for message in messages)


def num_skipped(messages: list[Message]) -> int:
    """Returns how many messages are empty."""
    return sum(bool(message.is_skipped) for message in messages)


def train_line(metrics: Metrics, totals: Totals, epoch: int) -> dict[str, Any]:
    """Returns the line of the step that was just added to `totals`."""
    line: dict[str, Any] = {
        "kind": "train",
        "step": totals.steps,
        "epoch": epoch,
        # The server of a U-shaped network knows neither.
        "loss": None if metrics.loss is None else float(metrics.loss),
        "accuracy": None if metrics.accuracy is None else float(metrics.accuracy),
    }
    ways = dict(zip(("up", "down"), by_direction(metrics)))
    line |= {f"{way}_bytes": num_bytes(sent) for way, sent in ways.items()}
    second = {f"second_{way}": sent[1] for way, sent in ways.items() if len(sent) > 1}
    line |= {f"{way}_bytes": int(message.num_bytes) for way, message in second.items()}
    messages = {way: sent[0] for way, sent in ways.items()} | second
    line |= {f"{way}_rank": None if message.rank is None else int(message.rank) for way, message in messages.items()}
    # A server does not know what the client's activations were.
    line |= {
        f"{way}_distortion": None if message.distortion is None else float(message.distortion)
        for way, message in messages.items()
    }
    budgets = {way: int(getattr(metrics, f"{way}_budget_bytes")) for way in messages}
    line |= {f"{way}_budget_bytes": budgets[way] + budgets.get(f"second_{way}", 0) for way in ways}
    line |= {f"{way}_budget_bytes": budgets[way] for way in second}
    line |= {"up_skipped": totals.up_skipped, "down_skipped": totals.down_skipped}
    line["link_seconds"] = float(metrics.link_seconds)
    return line


def eval_line(scores: dict[str, Any], totals: Totals, epoch: int) -> dict[str, Any]:
    """Returns the line of an evaluation after the steps in `totals`."""
    return {
        "kind": "eval",
        "step": totals.steps,
        "epoch": epoch,
        **scores,
        "total_up_bytes": totals.up_bytes,
        "total_down_bytes": totals.down_bytes,
        "total_link_seconds": totals.link_seconds,
    }


def summary(
    last_eval: dict[str, Any], totals: Totals, raw_message_bytes: tuple[int, ...], seed: int, client: str, server: str
) -> dict[str, Any]:
    """Returns what `summary.json` holds.

    Args:
        last_eval: the line of the last evaluation.
        totals: of the whole run.
        raw_message_bytes: as in `Totals.raw_bytes`.
        seed: of the run.
        client: digest of the client's trained parameters, see `params_sha256`.
        server: of the server's.
    """
    raw_up_bytes, raw_down_bytes = totals.raw_bytes(raw_message_bytes)
    return {
        **{name: value for name, value in last_eval.items() if name != "kind"},
        "raw_up_bytes": raw_up_bytes,
        "raw_down_bytes": raw_down_bytes,
        "ratio": totals.ratio(raw_message_bytes),
        "up_skipped": totals.up_skipped,
        "down_skipped": totals.down_skipped,
        "steps": totals.steps,
        "seed": seed,
        "wall_seconds": round(totals.wall_seconds, 3),
        **digests(client, server),
    }


def digests(client: str, server: str) -> dict[str, str]:
    """Returns the fields of a summary that tell one run's parameters from another's, from both halves' digests."""
    return {
        "client_params_sha256": client,
        "server_params_sha256": server,
        "params_sha256": hashlib.sha256((client + server).encode()).hexdigest(),
    }


def params_sha256(params: PyTree) -> str:
    """Returns the SHA-256 hex digest of the parameters' little-endian bytes, in tree order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


class Broken(Exception):
    """A step met a number that is not finite; the message names the tensor."""


class Calendar(NamedTuple):
    """What happens after which step; steps and epochs are counted from 1.

    Attributes:
        num_steps: of the whole run.
        steps_per_epoch: of one pass over the training data.
        log_every: steps from one line of metrics to the next.
        eval_every: steps from one evaluation to the next; 0 is once an epoch.
        checkpoint_every: the same for checkpoints.
    """

    num_steps: int
    steps_per_epoch: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def epoch(self, step: int) -> int:
        """Returns the epoch that `step` belongs to."""
        return -(-step // self.steps_per_epoch)

    def is_log_due(self, step: int) -> bool:
        """Returns whether a line of metrics is written after `step`."""
        return self._is_due(step, self.log_every)

    def is_eval_due(self, step: int) -> bool:
        """Returns whether the network is evaluated after `step`."""
        return self._is_due(step, self.eval_every)

    def is_checkpoint_due(self, step: int) -> bool:
        """Returns whether a checkpoint is saved after `step`."""
        return self._is_due(step, self.checkpoint_every)

    def _is_due(self, step: int, every: int) -> bool:
        return step % (every or self.steps_per_epoch) == 0 or step == self.num_steps


class Journal:
    """Keeps the totals, writes `metrics.jsonl` and tells the terminal; a checkpoint holds its `counts`."""

    def __init__(
        self,
        path: Path,
        terminal: Terminal,
        calendar: Calendar,
        raw_message_bytes: tuple[int, ...],
        counts: dict[str, Any] | None,
    ) -> None:
        """Opens the journal of a run, or goes on with it.

        Args:
            path: of `metrics.jsonl`.
            terminal: where a person looks.
            calendar: when lines are written.
            raw_message_bytes: as in `Totals.raw_bytes`.
            counts: of the checkpoint that the run goes on from, or None.
        """
        self.totals = Totals(**counts["totals"]) if counts else Totals()
        self.last_eval: dict[str, Any] = counts["last_eval"] if counts else {}
        self._file = MetricsFile(path, self.totals.metrics_bytes)
        self._terminal, self._calendar, self._raw_message_bytes = terminal, calendar, raw_message_bytes
        self._started = time.monotonic() - self.totals.wall_seconds

    def __enter__(self) -> "Journal":
        """Returns itself."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Closes the file."""
        self._file.close()

    def step(self, metrics: Metrics) -> None:
        """Takes in the metrics of the next step; waits for them.

        Raises:
            Broken: a number was not finite. The step then does not count.
        """
        metrics = jax.device_get(metrics)
        if metrics.broken >= 0:
            raise Broken(TENSORS[int(metrics.broken)])
        self.totals.add(metrics)
        line = train_line(metrics, self.totals, self._calendar.epoch(self.totals.steps))
        if self._calendar.is_log_due(self.totals.steps):
            self._file.write(line)
        self._terminal.step(line, self.ratio())

    def evaluated(self, scores: dict[str, Any]) -> None:
        """Takes in the scores of an evaluation.

        Raises:
            Broken: its loss is not finite.
        """
        if not math.isfinite(scores["loss"]):
            raise Broken(f"loss of the evaluation after step {self.totals.steps}")
        self.last_eval = eval_line(scores, self.totals, self._calendar.epoch(self.totals.steps))
        self._file.write(self.last_eval)
        self._terminal.evaluated(self.last_eval, self.ratio())

    def ratio(self) -> float:
        """Returns raw float32 bytes over bytes sent so far, both directions together."""
        return self.totals.ratio(self._raw_message_bytes)

    def counts(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of the journal, JSON-ready; all lines are on disk by then."""
        self.totals.wall_seconds = time.monotonic() - self._started
        self.totals.metrics_bytes = self._file.num_bytes()
        return {"totals": dataclasses.asdict(self.totals), "last_eval": self.last_eval}

    def summary(self, seed: int, client: str, server: str) -> dict[str, Any]:
        """Returns what `summary.json` holds; `client` and `server` are the digests of the trained parameters."""
        self.totals.wall_seconds = time.monotonic() - self._started
        return summary(self.last_eval, self.totals, self._raw_message_bytes, seed, client, server)
