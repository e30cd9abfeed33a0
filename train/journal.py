"""What the host knows of a run: totals in exact integers, lines of metrics, the summary."""

import dataclasses
import hashlib
import math
from typing import Any

import jax
import numpy as np

from nscjax.types import PyTree
from train.state import Metrics

WAYS = ("up", "down")


@dataclasses.dataclass
class Totals:
    """Totals of a run, exact: Python integers, summed on the host. A checkpoint holds them beside the state.

    Attributes:
        steps: how many were made.
        up_bytes: of all uplink frames of training.
        down_bytes: of all downlink frames.
        up_skipped: how many uplink messages the budget did not afford.
        down_skipped: the same for the downlink.
        link_seconds: that all messages took.
        wall_seconds: that the run took, all its parts together.
        metrics_bytes: the length of `metrics.jsonl` at the checkpoint.
    """

    steps: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    up_skipped: int = 0
    down_skipped: int = 0
    link_seconds: float = 0.0
    wall_seconds: float = 0.0
    metrics_bytes: int = 0

    def add(self, metrics: Metrics) -> None:
        """Adds one step."""
        self.steps += 1
        self.up_bytes += int(metrics.up.num_bytes)
        self.down_bytes += int(metrics.down.num_bytes)
        self.up_skipped += int(metrics.up.is_skipped)
        self.down_skipped += int(metrics.down.is_skipped)
        self.link_seconds += float(metrics.link_seconds)

    def ratio(self, raw_message_bytes: int) -> float:
        """Returns raw float32 bytes over bytes sent, both directions together."""
        return 2 * self.steps * raw_message_bytes / max(1, self.up_bytes + self.down_bytes)


def train_line(metrics: Metrics, totals: Totals, epoch: int) -> dict[str, Any]:
    """Returns the line of the step that was just added to `totals`."""
    line: dict[str, Any] = {
        "kind": "train",
        "step": totals.steps,
        "epoch": epoch,
        "loss": float(metrics.loss),
        "accuracy": float(metrics.accuracy),
    }
    messages = {"up": metrics.up, "down": metrics.down}
    line |= {f"{way}_bytes": int(messages[way].num_bytes) for way in WAYS}
    line |= {f"{way}_rank": None if messages[way].rank is None else int(messages[way].rank) for way in WAYS}
    line |= {f"{way}_distortion": float(messages[way].distortion) for way in WAYS}
    line["up_budget_bytes"] = int(metrics.up_budget_bytes)
    line["down_budget_bytes"] = int(metrics.down_budget_bytes)
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
    last_eval: dict[str, Any], totals: Totals, raw_message_bytes: int, seed: int, client: PyTree, server: PyTree
) -> dict[str, Any]:
    """Returns what `summary.json` holds.

    Args:
        last_eval: the line of the last evaluation.
        totals: of the whole run.
        raw_message_bytes: of one cut tensor in float32.
        seed: of the run.
        client: the client's trained parameters.
        server: the server's.
    """
    digests = [params_sha256(client), params_sha256(server)]
    return {
        **{name: value for name, value in last_eval.items() if name != "kind"},
        "raw_up_bytes": totals.steps * raw_message_bytes,
        "raw_down_bytes": totals.steps * raw_message_bytes,
        "ratio": totals.ratio(raw_message_bytes),
        "up_skipped": totals.up_skipped,
        "down_skipped": totals.down_skipped,
        "steps": totals.steps,
        "seed": seed,
        "wall_seconds": round(totals.wall_seconds, 3),
        "client_params_sha256": digests[0],
        "server_params_sha256": digests[1],
        "params_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
    }


def params_sha256(params: PyTree) -> str:
    """Returns the SHA-256 hex digest of the parameters' little-endian bytes, in tree order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def is_due(step: int, every: int, steps_per_epoch: int, num_steps: int) -> bool:
    """Returns whether something done every `every` steps (0: once an epoch), and at the end, is due after `step`."""
    return step % (every or steps_per_epoch) == 0 or step == num_steps


def epoch_of(step: int, steps_per_epoch: int) -> int:
    """Returns the epoch, counted from 1, that step number `step`, counted from 1, belongs to."""
    return math.ceil(step / steps_per_epoch)
