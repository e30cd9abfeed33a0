"""The server's role: it waits for a client, holds its own half, and trains it on what the client sends."""

import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from threadpoolctl import threadpool_limits

from nscjax import check, measure, remote, split, wire
from nscjax.compress.base import Dense
from nscjax.remote import envelope
from nscjax.remote import grpc as transport
from nscjax.types import PyTree
from train import checkpoint, evaluate, journal, messages, party, run_folder
from train import config as configs
from train import state as states
from train.config import Config
from train.data import Dataset, load_labels
from train.loop import calendar_of
from train.setup import architecture_of, require_known
from train.signals import Signals
from train.terminal import Terminal
from train.text import byte_size

LOCAL_KEYS = ("data.dir", "link.")
"""Config keys, or their beginnings, that may differ between the parties, beside those that never count."""

CLOSED = "closed"
"""A file in the run folder: the client has said that it has all it needs."""

MOST_SAMPLES = 1 << 28
"""The most samples of a client's data: an order of them is made."""

MOST_CLASSES = 1 << 20
"""The most classes: their logits are gone through."""

MOST_BATCH_BYTES = wire.MAX_BYTES
"""The most bytes of a batch of inputs, in float32: its shapes are gone through."""

PARTING_S = 10.0
"""Seconds that a client without an answer has to save a checkpoint, when the server is asked to end."""

LINGER_S = 60.0
"""Seconds after a goodbye in which its answer can be asked for again."""


@threadpool_limits.wrap(limits=1, user_api="blas")
def run(config: Config, kind: Callable[[Config], "Server"] | None = None) -> int:
    """Serves one client's run from its hello to its goodbye; returns the exit code.

    Args:
        config: of the run, `role` "server".
        kind: of server, by default `Server`.

    Raises:
        InputError: config, run folder, address or certificates cannot be used.
    """
    config = dataclasses.replace(config, link=configs.LinkConfig())  # the client's affair
    run_folder.require_free(config)
    is_finished = config.train.resume and (Path(config.run_dir) / "summary.json").exists()
    if is_finished and (Path(config.run_dir) / CLOSED).exists():
        print(f"{config.run_dir} holds the finished run: nothing to do.")
        return 0
    require_known(config)
    server = (kind or Server)(config)
    desk = remote.Desk(server.serve, on_fault=server.fail, on_refused=server.say)
    with Signals() as signals:
        door = open_door(config, desk)
        try:
            in_plain_text = ", in plain text" if config.remote.plain_text else ""
            server.say(f"listening on {config.remote.address}{in_plain_text}")
            if is_finished:
                server.say("the run is finished; waiting for a client that has not heard of it")
                server.leave_after(config.remote.patience_s)
            while not (server.is_done.wait(0.2) or signals.received):
                server.raise_problem()
            server.raise_problem()
            if signals.received:
                server.end_together(PARTING_S)
        finally:
            door.close()
            server.close(bool(signals.received))
    return 128 + signals.received if signals.received else 0


def open_door(config: Config, desk: remote.Desk) -> transport.Server:
    """Returns a listener that hands requests to the desk, within the config's limits."""
    limits = config.remote
    certs = None if limits.plain_text else Path(limits.certs)
    return transport.Server(limits.address, certs, limits.max_bytes, desk.handle, limits.max_calls)


class Server:
    """What the server holds, and how it answers; requests come one at a time."""

    requests, answers = messages.REQUESTS, messages.ANSWERS

    def __init__(self, config: Config) -> None:
        """Makes a server that has not met its client yet."""
        self.is_done = threading.Event()
        self._config = config
        self._labels = _own_labels(config)
        self._lock = threading.Lock()
        self._problem: check.InputError | None = None
        self._share: party.Share | None = None
        self._run = ""
        self._totals = journal.Totals()
        self._state: Any = None
        self._common = 0
        self._timer: threading.Timer | None = None
        self._is_ending = False
        self._answered_at, self._waiting_s = time.monotonic(), 0.0
        self._terminal: Terminal | None = None
        self._metrics: run_folder.MetricsFile | None = None

    def say(self, text: str) -> None:
        """Prints a line."""
        (self._terminal or Terminal(1, 0)).say(text)

    def fail(self, problem: Exception) -> None:
        """Ends the server with an error that is its own affair."""
        self._problem = check.InputError(f"the server cannot go on: {type(problem).__name__}: {problem}"[:2000])

    def raise_problem(self) -> None:
        """Raises what the run folder or the config could not be used for."""
        if self._problem is not None:
            raise self._problem

    def end_together(self, seconds: float) -> None:
        """Waits until the client has saved a checkpoint as well, as long as it goes on asking."""
        if self._share is None or self.is_done.is_set():
            return
        self._is_ending = True
        while not self.is_done.wait(0.2) and time.monotonic() < self._answered_at + seconds:
            pass

    def close(self, is_stopped: bool) -> None:
        """Saves what there is, where a signal ended the run, and puts the terminal back."""
        # Not in the middle of a request: state and counts belong together.
        with self._lock:
            self._close_files(is_stopped)

    def _close_files(self, is_stopped: bool) -> None:
        if is_stopped and self._share is not None:
            common = self._common
            self._save(self._totals.steps)
            self.say(
                f"stopped after step {self._totals.steps}; --train.resume true goes on from step {common}, the newest "
                "that the client has saved as well"
            )
        if self._metrics is not None:
            self._metrics.close()
        if self._terminal is not None:
            self._terminal.__exit__()

    def serve(self, client: str, run: str, kind: str, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Returns the answer to a request; see `nscjax.remote.Desk`."""
        with self._lock:
            self._waiting_s += time.monotonic() - self._answered_at
            try:
                return self._serve(client, run, kind, fields)
            finally:
                self._answered_at = time.monotonic()

    def _serve(self, client: str, run: str, kind: str, fields: dict[str, Any]) -> Mapping[str, Any]:
        if kind not in self.requests:
            raise remote.EnvelopeError(f"request is {kind!r:.40}; known: {', '.join(self.requests)}")
        envelope.check(fields, self.requests[kind], kind)
        if kind != "hello" and (self._share is None or run != self._run):
            raise remote.StrayedError("the server has not met this run")
        answer = getattr(self, f"_{kind}")(**fields) if kind != "hello" else self._hello(client, run, **fields)
        envelope.check(answer, self.answers[kind], f"answer to {kind}")
        return answer

    def _hello(
        self,
        client: str,
        run: str,
        *,
        protocol: int,
        config: str,
        sample_shape: list,
        is_image: bool,
        num_train: int,
        num_test: int,
        num_classes: int,
        saved: list,
    ) -> dict[str, Any]:
        """Compares what both parties are about, and agrees on the newest step that both have."""
        theirs = agreed(self._config, protocol, config)
        dataset = shapes(self._config.train.batch_size, sample_shape, is_image, num_train, num_classes)
        self._require_labels(theirs.remote.labels, dataset, num_test)
        own = self._own_steps(run)
        common = max({0} | (set(own) & {step for step in saved if type(step) is int}))
        if common == 0 and any(saved):
            raise remote.EnvelopeError(
                f"the client has checkpoints of {saved} steps, the server of {own}: none alike. "
                "Start the server with --train.resume true and its run_dir, or the client with a new run_dir."
            )
        if run != self._run:
            self._meet(run, dataset)
        assert self._share is not None
        if self._timer is not None:  # it is asked again
            self._timer.cancel()
        with checkpoint.Checkpoints(self._checkpoints) as checkpoints:
            if common:
                self._state = checkpoints.restore(self._share.first, common)
                self._totals = journal.Totals(**checkpoints.counts(common)["totals"])
            else:
                self._state, self._totals = self._share.first, journal.Totals()
            checkpoints.forget_after(common)
        if self._metrics is not None:
            self._metrics.close()
        self._metrics = run_folder.MetricsFile(Path(self._config.run_dir) / "metrics.jsonl", self._totals.metrics_bytes)
        self._grading: Any = None
        self._common = common
        self.say(f"client {client}: {'begins' if not common else f'goes on after step {common}'}")
        return {"step": common}

    def _own_steps(self, run: str) -> list[int]:
        """Returns the steps of the run of which the server has checkpoints; raises where it holds another run's."""
        folder = Path(self._config.run_dir)
        if not (self._run or run_folder.can_resume(self._config)):
            return []
        known, own = folder / "run.txt", checkpoint.steps(folder / "checkpoints")
        if own and known.exists() and known.read_text() != run:
            raise remote.EnvelopeError(
                f"the server's {self._config.run_dir} holds another run: go on with it from that client's run_dir, "
                "or start the server with another one"
            )
        return own

    def _meet(self, run: str, dataset: Dataset) -> None:
        """Makes ready for a run: everything that takes long or can go wrong, and the run folder."""
        calendar = calendar_of(self._config, dataset)
        made = party.share(self._config, dataset, "server", calendar.num_steps)
        grade_parts = evaluate.make_parts(made.setup, self._config.train.batch_size, dataset.num_classes)
        try:
            folder = run_folder.claim(configs.resumed(self._config) if self._run else self._config)
        except check.InputError as problem:
            self._problem = problem
            raise
        run_folder.write_whole(folder / "run.txt", run)
        self._checkpoints, self._calendar = folder / "checkpoints", calendar
        self._dataset, self._run = dataset, run
        self._needs_ids = party.needs_ids(self._config) or self._labels is not None
        self._grade_parts = grade_parts
        self._whole = jax.eval_shape(lambda values: Dense(values=values), made.setup.cuts[0].spec)
        self._share = made
        if self._terminal is None:
            self._terminal = Terminal(self._calendar.num_steps, 0)
            self._terminal.__enter__()
        self._begun = time.monotonic()
        self._waiting_s = self._waited_s = 0.0

    def _step(
        self,
        *,
        step: int,
        frame: bytes,
        labels: bytes,
        ids: bytes,
        up_budget: int,
        down_budget: int,
        up_mbps: float,
        down_mbps: float,
    ) -> dict[str, Any]:
        """Makes one step on a client's message."""
        made = self._made()
        self._require_at(step)
        started = time.monotonic()
        waited_s, self._waiting_s = self._waiting_s, 0.0
        cut = made.setup.cuts[0]
        batch_size = cut.spec.shape[0]
        require_fits(frame, cut.caps[0], self._config.compress.up)
        payload = wire.decode(frame, like=made.layouts["up"])
        sample_ids = ids_of(ids, batch_size, len(self._dataset.x_train), self._needs_ids)
        if self._labels is None:
            y = messages.int32_array(labels, batch_size, self._dataset.num_classes, "labels")
        else:
            y = self._labels[0][sample_ids]
        up, down = allowed((up_budget, down_budget), cut.caps)
        number, state = np.int32(step), self._state
        answered, moved, optimiser = made.parts.answer(
            state.party, state.optimiser, number, payload, y, sample_ids, up, down
        )
        message, mirror = made.echoes["down"](
            payload, moved.up, answered.payload, answered.smashed_grad, state.mirror, number, sample_ids, down
        )
        loss, accuracy, distortion, *is_finite = jax.device_get(
            (answered.loss, answered.accuracy, message.distortion, answered.are_grads_finite, answered.is_half_finite)
        )
        # In the order of `TENSORS`: loss, gradient of the cut, the server's gradients, its updated half.
        checked = {1: np.isfinite(loss), 2: np.isfinite(distortion), 4: is_finite[0], 6: is_finite[1]}
        broken = next((place for place, fine in checked.items() if not fine), -1)
        if broken >= 0:
            return {"frame": b"", "loss": 0.0, "accuracy": 0.0, "distortion": 0.0, "rank": -1, "broken": broken,
                    "compute_s": time.monotonic() - started, "wants_save": False}  # fmt: skip
        reply = wire.encode(answered.payload)
        self._state = party.PartyState(moved, optimiser, mirror, state.step + 1)
        sent = message._replace(num_bytes=len(reply))
        metrics: Any = (loss, accuracy, arrived(frame, payload), sent, up, down, 0.0, broken)
        step_metrics = states.Metrics(*metrics)
        self._count(step_metrics, waited_s, up_mbps, down_mbps)
        return {"frame": reply, "loss": float(loss), "accuracy": float(accuracy), "distortion": float(distortion),
                "rank": rank_of(sent), "broken": -1, "compute_s": time.monotonic() - started,
                "wants_save": self._is_ending}  # fmt: skip

    def _count(self, metrics: states.Metrics, waited_s: float, up_mbps: float, down_mbps: float) -> None:
        """Takes in what a step was like, and shows it.

        Args:
            metrics: of the step.
            waited_s: seconds that the server waited for its messages.
            up_mbps: what the client has measured of the uplink, in Mbit/s.
            down_mbps: the same of the downlink.
        """
        self._totals.add(metrics)
        line = journal.train_line(metrics, self._totals, self._calendar.epoch(self._totals.steps))
        del line["link_seconds"]  # the client's to measure
        self._waited_s += waited_s
        elapsed_s = time.monotonic() - self._begun
        line |= {"waited_s": waited_s, "waited_share": self._waited_s / max(elapsed_s, 1e-9)}
        line |= {"up_mbit_per_s": up_mbps, "down_mbit_per_s": down_mbps}
        assert self._metrics is not None
        if self._calendar.is_log_due(self._totals.steps):
            self._metrics.write(line)
        assert self._terminal is not None
        self._terminal.step(line, self._totals.ratio(self._made().setup.raw_message_bytes))

    def _grade(
        self, *, step: int, batch: int, frame: bytes, smashed: bytes, labels: bytes, num_real: int
    ) -> dict[str, Any]:
        """Grades one batch of an evaluation."""
        made = self._made()
        self._require_at(step)
        size = made.setup.cuts[0].spec.shape[0]
        require_batch(batch, num_real, size)
        if batch == 0:
            self._grading = self._state.party.up, evaluate.no_sums(self._dataset.num_classes)
        elif self._grading is None:
            raise remote.StrayedError("an evaluation begins with its first batch")
        payload = wire.decode(frame, like=made.layouts["up"])
        whole = wire.decode(smashed, like=self._whole).values if smashed else None
        if self._labels is None:
            y = messages.int32_array(labels, size, self._dataset.num_classes, "labels")
        else:
            y = self._test_labels(batch, size, num_real)
        self._grading = self._grade_parts.grade(
            self._state.party, *self._grading, payload, whole, y, np.arange(size) < num_real, np.int32(batch)
        )
        return {}

    def _require_labels(self, party: str, dataset: Dataset, num_test: int) -> None:
        """Raises an `EnvelopeError` unless one party has the labels, and those that belong to the client's data."""
        own = self._config.remote.labels
        if party != own:
            raise remote.EnvelopeError(f"remote.labels is {party!r} at the client, {own!r} at the server")
        if self._labels is None:
            return
        train, test = self._labels
        for what, labels, count in (("training", train, len(dataset.x_train)), ("test", test, num_test)):
            if len(labels) != count:
                raise remote.EnvelopeError(f"the client has {count} {what} samples, the server {len(labels)} labels")
        for labels in (train, test):
            if not (labels.min() >= 0 and labels.max() < dataset.num_classes):
                raise remote.EnvelopeError(
                    f"the server's labels are from {labels.min()} to {labels.max()}, the client's classes are "
                    f"{dataset.num_classes}"
                )

    def _test_labels(self, batch: int, size: int, num_real: int) -> np.ndarray:
        """Returns the labels of a batch of the test set, zeros for padding; `_grade` has seen to the numbers."""
        assert self._labels is not None
        test = self._labels[1]
        if batch * size + num_real > len(test):
            raise remote.EnvelopeError(f"batch {batch} has {num_real} samples; the server has {len(test)} test labels")
        return np.pad(test[batch * size : batch * size + num_real], (0, size - num_real))

    def _scores(self, *, num_samples: int) -> dict[str, Any]:
        """Returns the scores of the batches graded; a loss that is not finite is None."""
        if self._grading is None or not 1 <= num_samples < 2**31:
            raise remote.StrayedError("nothing has been graded")
        found = evaluate.scores(self._grading[1], num_samples)
        return {**found, "loss": found["loss"] if math.isfinite(found["loss"]) else None}

    def _save(self, step: int) -> dict[str, Any]:
        """Saves a checkpoint, if the server is at that step."""
        if step != self._totals.steps:
            return {"saved": False}
        assert self._metrics is not None
        self._totals.metrics_bytes = self._metrics.num_bytes()
        with checkpoint.Checkpoints(self._checkpoints) as checkpoints:
            counts = {"totals": dataclasses.asdict(self._totals), "last_eval": {}, "views": {}}
            checkpoints.save(step, self._state, counts)
        self._common = step
        if self._is_ending:
            self.leave_after(0.2)  # the reply goes out first
        return {"saved": True}

    def _goodbye(self, *, step: int, digest: str, summary: str) -> dict[str, Any]:
        """Writes the server's half and its summary: the client's, and what the server alone knows."""
        self._require_at(step)
        if step != self._calendar.num_steps:
            raise remote.EnvelopeError(f"goodbye after step {step}; the run has {self._calendar.num_steps}")
        own = journal.params_sha256(self._state.party.params)
        found = {**_summary(summary), **journal.digests(digest, own)}
        folder = Path(self._config.run_dir)
        about = {"architecture": architecture_of(self._config, self._dataset), "of": party.facts(self._dataset)}
        checkpoint.save_half(folder / "halves" / "server", (self._state.party.params, self._state.party.state), about)
        run_folder.write_whole(folder / "summary.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
        sent = byte_size(self._totals.up_bytes), byte_size(self._totals.down_bytes)
        self.say(f"done: {step} steps, {sent[0]} up, {sent[1]} down; {folder / 'summary.json'}")
        self.leave_after(LINGER_S)
        return {"digest": own}

    def _close(self) -> dict[str, Any]:
        """Ends the server: the client has all that it needs."""
        run_folder.write_whole(Path(self._config.run_dir) / CLOSED, "")
        self.leave_after(0.2)  # the reply goes out first
        return {}

    def leave_after(self, seconds: float) -> None:
        """Ends the server in a while, unless a client comes before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(seconds, self.is_done.set)
        self._timer.daemon = True
        self._timer.start()

    def _made(self) -> party.Share:
        """Returns what the server has of the run; `_serve` has seen to it that there is one."""
        assert self._share is not None
        return self._share

    def _require_at(self, step: int) -> None:
        if step != self._totals.steps:
            raise remote.StrayedError(f"the server is after step {self._totals.steps}, the client after {step}")


def allowed(budgets: tuple[int, int], caps: tuple[int, int]) -> tuple[np.int32, np.int32]:
    """Returns the budgets that a client asks for, within what the config allows."""
    up, down = (np.int32(min(max(budget, 0), cap)) for budget, cap in zip(budgets, caps))
    return up, down


def require_fits(frame: bytes, cap_bytes: int, direction: configs.DirectionConfig) -> None:
    """Raises an `EnvelopeError` for a frame that is larger than the config allows."""
    if len(frame) > cap_bytes and direction.method != "identity":
        raise remote.EnvelopeError(f"frame has {len(frame)} bytes; allowed: {cap_bytes}")


def arrived(frame: bytes, payload: PyTree) -> split.Message:
    """Returns what a message cost; what it lost only its sender knows."""
    message: Any = len(frame), measure.rank(payload), None, measure.is_skipped(payload)
    return split.Message(*message)


def rank_of(message: split.Message) -> int:
    """Returns a message's rank as the wire has it: -1 for a method without one."""
    return -1 if message.rank is None else int(message.rank)


def _own_labels(config: Config) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the server's labels of both splits, or None if they are the client's."""
    if config.remote.labels == "client":
        return None
    if not config.remote.labels_file:
        remedy = "With remote.labels 'server' the server needs one."
        raise check.error("remote.labels_file", "", "an .npz file with y_train and y_test", remedy)
    return load_labels(Path(config.remote.labels_file), config.data)


def agreed(own: Config, protocol: int, text: str) -> Config:
    """Returns the client's config; raises an `EnvelopeError` that names what differs from the server's, or protocol."""
    if protocol != remote.PROTOCOL:
        raise remote.EnvelopeError(f"the client speaks protocol {protocol}, the server {remote.PROTOCOL}")
    other = configs.from_toml(text)
    differing = [key for key in configs.differing_keys(own, other) if not key.startswith(LOCAL_KEYS)]
    if differing:
        values = {key: (configs.value(other, key), configs.value(own, key)) for key in differing}
        told = ", ".join(f"{key} ({there!r} at the client, {here!r} at the server)"
                         for key, (there, here) in values.items())  # fmt: skip
        raise remote.EnvelopeError(f"the parties' configs differ: {told}")
    return other


def require_batch(batch: int, num_real: int, size: int) -> None:
    """Raises an `EnvelopeError` unless there is such a batch of at most `size` samples."""
    if not (0 <= batch < 2**31 // size and 1 <= num_real <= size):
        raise remote.EnvelopeError(f"batch {batch} has {num_real} samples; allowed: 1 to {size}")


def shapes(batch_size: int, sample_shape: list, is_image: bool, num_train: int, num_classes: int) -> Dataset:
    """Returns a data set of the shapes that a client tells, which holds nothing.

    Raises:
        EnvelopeError: they are none, or would take more memory than a message may.
    """
    if not (1 <= len(sample_shape) <= 4 and all(type(size) is int and 1 <= size <= 1 << 16 for size in sample_shape)):
        raise remote.EnvelopeError(f"shape of a sample is {sample_shape!r:.80}")
    if not (1 <= num_train <= MOST_SAMPLES and 1 <= num_classes <= MOST_CLASSES):
        raise remote.EnvelopeError(
            f"the client has {num_train} samples of {num_classes} classes; allowed: {MOST_SAMPLES} of {MOST_CLASSES}"
        )
    num_bytes = 4 * batch_size * math.prod(sample_shape)
    if num_bytes > MOST_BATCH_BYTES:
        raise remote.EnvelopeError(f"a batch of inputs has {num_bytes} bytes; allowed: {MOST_BATCH_BYTES}")
    return party.hollow(sample_shape, is_image, num_train, num_classes)


def ids_of(data: bytes, batch_size: int, num_train: int, needs_ids: bool) -> Any:
    """Returns the samples' ids; zeros where no method looks at them."""
    if not needs_ids and not data:
        return jnp.zeros(batch_size, jnp.int32)
    return messages.int32_array(data, batch_size, num_train, "ids")


def _summary(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as problem:
        raise remote.EnvelopeError(f"the client's summary is not JSON: {problem}") from problem
    return found if isinstance(found, dict) else {}
