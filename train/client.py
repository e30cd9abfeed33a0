"""The client's role: it holds the data and its own half, and trains it with a server's answers."""

import contextlib
import json
import math
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from threadpoolctl import threadpool_limits

from nscjax import check, measure, remote, split, wire
from nscjax.compress.base import Dense
from nscjax.layout import MAX_BYTES
from nscjax.remote import grpc as transport
from nscjax.remote.session import AnswerError
from nscjax.types import PyTree
from train import bandwidth, checkpoint, evaluate, journal, loop, messages, party, report, run_folder
from train import config as configs
from train import state as states
from train.config import Config
from train.data import Dataset
from train.data.batches import num_eval_steps
from train.setup import architecture_of, initial_mbps, inputs_of
from train.signals import Signals
from train.terminal import Terminal

MOST_RESTARTS = 1000
"""How often a run may have to go on from a checkpoint because its server was started anew."""

RESUME = "--train.resume true goes on from the last checkpoint"


@threadpool_limits.wrap(limits=1, user_api="blas")
def run(config: Config, kind: type["Client"] | None = None) -> int:
    """Trains with the server at `config.remote.address` and returns the exit code.

    A server that was started anew is gone on with from the newest step of which both have a checkpoint.

    Args:
        config: of the run, `role` "client".
        kind: of client, by default `Client`.

    Raises:
        InputError: something from outside cannot be used, or the server is away for longer than the patience.
    """
    dataset = loop.data_to_train_on(config)
    if dataset is None:
        return 0
    calendar = loop.calendar_of(config, dataset)
    share = party.share(config, dataset, "client", calendar.num_steps)
    signals = Signals()
    with conversation(config, share) as way, signals:
        try:
            for _ in range(MOST_RESTARTS):
                try:
                    return _attempt(kind or Client, config, dataset, calendar, share, way, signals)
                except remote.StrayedError:
                    config = configs.resumed(config)
        except (remote.UnreachableError, remote.RefusedError):
            if not signals.received:
                raise
            # There is no one to save a checkpoint with.
            print(f"stopped; {RESUME}", file=sys.stderr)
            return 128 + signals.received
    raise check.error("restarts of the server in one run", MOST_RESTARTS, f"fewer than {MOST_RESTARTS}")


@contextlib.contextmanager
def conversation(config: Config, share: party.Share, remedy: str = RESUME) -> Iterator[remote.Transport]:
    """Opens the way to the server; what goes wrong on it is an `InputError` that says what to do.

    Args:
        config: of the client.
        share: of the run.
        remedy: what to do when the server is back.
    """
    certs = None if config.remote.plain_text else Path(config.remote.certs)
    way: remote.Transport = transport.Client(
        config.remote.address, certs, min(MAX_BYTES, 2 * share.largest_raw_bytes()),
        measures=config.link.deadline_s is not None,
    )  # fmt: skip
    link = share.setup.link
    if is_shaped(config):
        way = remote.Shaped(way, link.up, link.down, config.link.latency_ms / 1000)
    try:
        yield way
    except (remote.UnreachableError, remote.RefusedError) as problem:
        raise check.InputError(
            f"remote.address: {problem}. Start the server, or look at its address and certificates, and that "
            f"remote.plain_text is the same at both; {remedy}."
        ) from None
    except AnswerError as problem:
        raise check.InputError(f"the server refused: {problem}") from None
    except (remote.EnvelopeError, wire.WireError) as problem:
        raise check.InputError(f"remote.address: what the server sent is no answer: {problem}") from None
    finally:
        way.close()


def is_shaped(config: Config) -> bool:
    """Returns whether the config has a link that the real one is to be as slow as."""
    return any(getattr(config.link, name) is not None for name in configs.LINK_RATES) or config.link.latency_ms > 0


def _attempt(
    kind: type["Client"], config: Config, dataset: Dataset, calendar: journal.Calendar, share: party.Share,
    way: remote.Transport, signals: Signals,
) -> int:  # fmt: skip
    """Makes the run, or goes on with it, until it ends or the server strays."""
    saved = Path(config.run_dir) / "checkpoints"
    may_resume = run_folder.can_resume(config)
    known = Path(config.run_dir) / "run.txt"
    run_id = known.read_text() if may_resume and known.exists() else uuid.uuid4().hex
    with Terminal(calendar.num_steps, 0) as terminal:
        waiting = _Once(terminal.say)
        session = remote.Session(
            way, run_id, timeout_s=config.remote.timeout_s, patience_s=config.remote.patience_s,
            on_waiting=waiting, is_stopped=lambda: signals.received,
        )  # fmt: skip
        own = checkpoint.steps(saved) if may_resume else []
        answer, _ = session.ask("hello", hello(config, dataset, own), messages.ANSWERS["hello"])
        common = answer["step"]
        if common not in {0, *own}:
            raise remote.EnvelopeError(f"the server goes on after step {common}; the client has {own}")
        folder = run_folder.claim(config)
        run_folder.write_whole(folder / "run.txt", run_id)
        with checkpoint.Checkpoints(saved) as checkpoints:
            checkpoints.forget_after(common)
            state = checkpoints.restore(share.first, common) if common else share.first
            counts = checkpoints.counts(common) if common else None
            raw_bytes = share.setup.raw_message_bytes
            with journal.Journal(folder / "metrics.jsonl", terminal, calendar, raw_bytes, counts) as log:
                client = kind(config, dataset, calendar, share, session, terminal, waiting.over)
                # What was sent up to the checkpoint counts as well.
                session.sent_bytes += log.totals.envelope_up_bytes
                session.received_bytes += log.totals.envelope_down_bytes
                terminal.say(f"{config.run_dir}: {dataset.name}, client of the server at {config.remote.address}")
                if common:
                    terminal.say(f"goes on after step {common}")

                def save(state: Any) -> None:
                    step = log.totals.steps
                    reply, _ = session.ask("save", {"step": step}, messages.ANSWERS["save"])
                    if reply["saved"]:
                        log.totals.envelope_up_bytes = session.sent_bytes
                        log.totals.envelope_down_bytes = session.received_bytes
                        checkpoints.save(step, state, {**log.counts(), "views": {}})

                try:
                    state = loop.train(
                        state, client.advance, client.score, save, calendar, log, signals, client.is_save_asked
                    )
                except journal.Broken as broken:
                    raise check.InputError(
                        f"step {log.totals.steps + 1}: not finite: {broken}. A lower train.learning_rate or a longer "
                        "train.warmup is the usual cure; it needs a run_dir of its own."
                    ) from None
                if signals.received:
                    terminal.say(f"stopped after step {log.totals.steps}; --train.resume true goes on from here")
                    return 128 + signals.received
                digest = journal.params_sha256(state.party.params)
                found = _goodbye(session, log, client, config.seed, digest)
        about = {"architecture": architecture_of(config, dataset), "of": party.facts(dataset)}
        about |= inputs_of(share.setup.inputs, dataset)
        checkpoint.save_half(folder / "halves" / "client", (state.party.params, state.party.state), about)
        run_folder.write_whole(folder / "summary.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
        page = report.write(folder)
        # All is on disk: the server may go. It may be gone already.
        with contextlib.suppress(remote.UnreachableError, remote.RefusedError, remote.StrayedError):
            session.ask("close", {}, messages.ANSWERS["close"], patience_s=2)
    terminal.finished(found, page)
    return 0


def _goodbye(session: remote.Session, log: journal.Journal, client: "Client", seed: int, digest: str) -> dict[str, Any]:
    """Takes leave of the server with the run's summary; returns it with what the server adds."""
    found = log.summary(seed, digest, "")
    goodbye = {"step": log.totals.steps, "digest": digest, "summary": json.dumps(client.shared(found))}
    answer, _ = session.ask("goodbye", goodbye, messages.ANSWERS["goodbye"])
    found |= journal.digests(digest, answer["digest"])
    return found | {"envelope_up_bytes": session.sent_bytes, "envelope_down_bytes": session.received_bytes}


def hello(config: Config, dataset: Dataset, saved: list[int]) -> dict[str, Any]:
    """Returns the request that opens a session: what the client is about, and the steps of which it has checkpoints."""
    return {
        "protocol": remote.PROTOCOL, "config": configs.to_toml(config), **party.facts(dataset),
        "num_test": len(dataset.x_test), "saved": saved,
    }  # fmt: skip


class _Once:
    """Says once in every outage why a request is sent again."""

    def __init__(self, say: Callable[[str], Any]) -> None:
        self._say = say
        self._said: set[str] = set()

    def __call__(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            self._say(f"waiting for the server: {why}")

    def over(self) -> None:
        """The outage is over."""
        self._said.clear()


class Client:
    """How the client makes a step, and an evaluation, with the server."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        calendar: journal.Calendar,
        share: party.Share,
        session: remote.Session,
        terminal: Terminal,
        on_answer: Callable[[], Any] = lambda: None,
    ) -> None:
        """Puts the data on the device."""
        self._on_answer = on_answer
        self._config, self._share = config, share
        self._session, self._terminal = session, terminal
        x, y, x_test, y_test = map(jnp.asarray, (dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test))
        self._test = x_test, y_test
        self._batch_of = loop.batches_on_device(config, x, y, calendar.steps_per_epoch)
        self._num_steps, self._num_classes = calendar.num_steps, dataset.num_classes
        self._ahead: dict[int, Any] = {}
        self._has_labels = config.remote.labels == "client"
        self._needs_ids = party.needs_ids(config) or not self._has_labels
        self._link = bandwidth.Bandwidth(share.setup.estimator, config.link.deadline_s, initial_mbps(config))
        self._eval = evaluate.make_parts(share.setup, config.train.batch_size, dataset.num_classes)
        self._wants_save = False

    def is_save_asked(self) -> bool:
        """Returns whether the server, about to end, has asked for a checkpoint."""
        return self._wants_save

    def advance(self, state: party.PartyState, step: int) -> tuple[party.PartyState, states.Metrics]:
        """Makes one step with the server."""
        made, number = self._share, np.int32(step)
        x, y, ids = self._batch(step)
        budgets = self._link.budgets(made.setup.cuts[0].caps)
        up, down = map(np.int32, budgets)
        payload, pending, sender = made.parts.send(state.party, number, x, ids, up)
        values = fetched(payload, states.TENSORS[0])
        # Under way while the server computes.
        echoed, mirror = made.echoes["up"](payload, pending.smashed, state.mirror, number, ids, up)
        self._begin(step + 1)
        frame = wire.encode(values)
        request = {
            "step": step, "frame": frame, "labels": messages.int32_bytes(y) if self._has_labels else b"",
            "ids": messages.int32_bytes(ids) if self._needs_ids else b"", "up_budget": budgets[0],
            "down_budget": budgets[1],
        }  # fmt: skip
        request |= dict(zip(("up_mbps", "down_mbps"), self._link.rates()))
        answer, exchange = self._session.ask("step", request, messages.ANSWERS["step"])
        self._wants_save = answer["wants_save"]
        reply = self._reply(answer, "down", budgets[1])
        receipt, moved, optimiser = made.parts.receive(sender, state.optimiser, number, pending, reply, ids, down)
        checked = jax.device_get((echoed.distortion, receipt.are_grads_finite, receipt.is_half_finite))
        # In the order of `TENSORS`: activations, the client's gradients, its updated half.
        is_fine = np.isfinite(checked[0]), *checked[1:]
        broken = next((place for place, fine in zip((0, 3, 5), is_fine) if not fine), -1)
        metrics: Any = (
            answer["loss"], answer["accuracy"], echoed._replace(num_bytes=len(frame)), told(answer, reply), up, down,
            self._link.saw(exchange, answer["compute_s"], (len(frame), len(answer["frame"]))), broken,
        )  # fmt: skip
        return party.PartyState(moved, optimiser, mirror, state.step + 1), states.Metrics(*metrics)

    def shared(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Returns what of a summary the server is told: here all of it."""
        return summary

    def _batch(self, step: int) -> tuple[Any, Any, Any]:
        """Returns a step's inputs, labels and sample ids."""
        return self._ahead.pop(step) if step in self._ahead else self._batch_of(step)

    def _begin(self, step: int) -> None:
        """Lets the device make the batch of a step that comes later, if there is such a step."""
        if step < self._num_steps:
            self._ahead = {step: self._batch_of(step)}

    def _reply(self, answer: dict[str, Any], way: str, budget: int) -> PyTree:
        """Returns the payload of the server's answer; raises where there is none, or it is too large."""
        self._on_answer()
        if answer["broken"] >= 0:
            raise journal.Broken(states.TENSORS[answer["broken"] % len(states.TENSORS)])
        reply = wire.decode(answer["frame"], like=self._share.layouts[way])
        # An empty message is a header, however small the budget was.
        is_within = len(answer["frame"]) <= budget or bool(measure.is_skipped(reply))
        if not is_within and getattr(self._config.compress, way).method != "identity":
            raise remote.EnvelopeError(f"its frame has {len(answer['frame'])} bytes; allowed: {budget}")
        return reply

    def score(self, state: party.PartyState) -> dict[str, Any]:
        """Returns the fields of an evaluation, graded by the server."""
        num_samples = len(self._test[0])
        num_batches = num_eval_steps(num_samples, self._config.train.batch_size)
        num_bytes = 0
        for batch, shown in enumerate(one_ahead(self._presented(state.party, state.party.up, num_batches))):
            payload, smashed, labels, mask = shown
            frame = wire.encode(payload)
            num_bytes += len(frame)
            whole = wire.encode(Dense(values=smashed)) if self._config.remote.eval_uncompressed else b""
            request = {
                "step": int(state.step), "batch": batch, "frame": frame, "smashed": whole,
                "labels": messages.int32_bytes(labels) if self._has_labels else b"", "num_real": int(mask.sum()),
            }  # fmt: skip
            self._session.ask("grade", request, messages.ANSWERS["grade"])
            self._terminal.evaluating(batch + 1, num_batches)
        answer, _ = self._session.ask("scores", {"num_samples": num_samples}, messages.ANSWERS["scores"])
        if not self._config.remote.eval_uncompressed:
            answer["accuracy_uncompressed"] = None
        # JSON has no word for a loss that is not finite, nor has the wire.
        loss = math.nan if answer["loss"] is None else answer["loss"]
        return {**answer, "loss": loss, "eval_up_bytes": num_bytes}

    def _presented(self, own: split.Party, enc: PyTree, num_batches: int) -> Iterator[evaluate.Presented]:
        """Yields what crosses of every batch of the test split, as soon as its computation is under way."""
        for batch in range(num_batches):
            shown, enc, _ = self._eval.present(own, enc, *self._test, np.int32(batch))
            yield shown


def fetched(payload: PyTree, tensor: str) -> PyTree:
    """Returns a payload on the host; raises `Broken` with the tensor's name where a number is not finite."""
    values = jax.device_get(payload)
    if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(values)):
        raise journal.Broken(tensor)
    return values


def told(answer: dict[str, Any], reply: PyTree) -> split.Message:
    """Returns what the server's message cost and lost, by its answer and the payload in it."""
    rank = None if answer["rank"] < 0 else answer["rank"]
    message: Any = len(answer["frame"]), rank, answer["distortion"], bool(measure.is_skipped(reply))
    return split.Message(*message)


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yields every item when the one after it has been begun: the device computes it while this one is sent."""
    item = next(items)
    for after in items:
        yield item
        item = after
    yield item
