"""Prediction over the link, with a finished run: the client's half here, the server's there.

What crosses is the compressed cut, and classes come back, or of a U-shaped network the second cut. Each party takes the
newest checkpoint in its run folder: its half and the states of the compressors, so that a warm basis is as warm as
after the last step.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nscjax import check, remote, wire
from nscjax.remote import envelope
from nscjax.types import PyTree
from train import checkpoint, client, evaluate, messages, party, server
from train import config as configs
from train.config import Config
from train.data import Dataset, stream
from train.data.batches import num_eval_steps
from train.loop import calendar_of
from train.signals import Signals
from train.terminal import Terminal
from train.text import byte_size


def ask(config: Config) -> int:
    """Prints the class of every input of the file `config.predict`, a line each; returns the exit code.

    Args:
        config: of the run, `role` "client".

    Raises:
        InputError: file, run folder or server cannot be used.
    """
    folder = Path(config.run_dir)
    _, about = checkpoint.load_half(folder / "halves" / "client")
    if "of" not in about:
        raise check.error("run_dir", config.run_dir, "the folder of a run with role 'client'")
    shape, is_image = tuple(about["shape"]), about["mean"] is not None
    x = stream.memory_map(config.predict)
    is_kind = x.dtype == np.uint8 if is_image else np.issubdtype(x.dtype, np.floating)
    if x.shape[1:] != shape or len(x) == 0 or not is_kind:
        kind = "uint8" if is_image else "floats"
        raise check.error(config.predict, f"{x.dtype} {x.shape}", f"at least one sample of shape {shape}, {kind}")
    require_finite(config.predict, x, config.train.batch_size)  # before anyone is asked
    dataset = party.hollow(**about["of"])
    if is_image:
        dataset = dataset._replace(mean=np.asarray(about["mean"], np.float32), std=np.asarray(about["std"], np.float32))
    step, share, state = _finished(config, dataset, "client")
    parts = evaluate.make_parts(share.setup, config.train.batch_size, dataset.num_classes)
    opening = {"protocol": remote.PROTOCOL, "config": configs.to_toml(config), "step": step, **about["of"]}
    # A bar among the lines of one and the same screen would be in their way.
    terminal = Terminal(len(x), 0, "predicting", has_bar=not sys.stdout.isatty())
    with client.conversation(config, share, "then ask again") as way, terminal:
        session = remote.Session(
            way, _run_of(folder), timeout_s=config.remote.timeout_s, patience_s=config.remote.patience_s,
            on_waiting=terminal.say,
        )  # fmt: skip
        try:
            session.ask("open", opening, messages.PREDICTION_ANSWERS["open"])
            sent, received = _ask(
                session, parts, state, x, config.train.batch_size, dataset.num_classes, terminal, share.layouts
            )
        except remote.StrayedError as problem:
            raise check.InputError(f"remote.address: {problem}; ask again.") from None
    print(f"{len(x)} samples, {byte_size(sent)} up, {byte_size(received)} down", file=sys.stderr)
    return 0


def require_finite(name: str, x: np.ndarray, batch_size: int) -> None:
    """Raises an `InputError` that names the batch in which a sample is not finite; reads a file batch by batch."""
    for start in range(0, len(x), batch_size):
        if not np.all(np.isfinite(x[start : start + batch_size])):
            raise check.error(name, f"not finite, from sample {start} on", "finite numbers")


def _ask(
    session: remote.Session, parts: evaluate.Parts, state: party.PartyState, x: np.ndarray, batch_size: int,
    num_classes: int, terminal: Terminal, layouts: dict[str, PyTree],
) -> tuple[int, int]:  # fmt: skip
    """Prints the classes, batch by batch; returns (sent, received) the bytes of frames, or of classes."""
    is_u_shaped = parts.relay is not None
    first_enc, dec = state.party.up if is_u_shaped else (state.party.up, None)

    def payloads():
        enc = first_enc
        for batch in range(num_eval_steps(len(x), batch_size)):
            # The last batch is filled up with samples from the start, as in an evaluation.
            ids = np.arange(batch * batch_size, (batch + 1) * batch_size)
            payload, enc = parts.send(state.party, enc, np.asarray(x[ids % len(x)]), np.int32(batch))
            yield payload

    sent = received = 0
    for batch, payload in enumerate(client.one_ahead(payloads())):
        num_real = min(batch_size, len(x) - batch * batch_size)
        frame = wire.encode(jax.device_get(payload))
        request = {"batch": batch, "frame": frame, "num_real": num_real}
        answer, _ = session.ask("predict", request, messages.PREDICTION_ANSWERS["predict"])
        if is_u_shaped:
            onward = wire.decode(answer["frame"], like=layouts["second_down"])
            dec, found = parts.classify(state.party, dec, onward, np.int32(batch))
            classes = np.asarray(found)[:num_real]
        else:
            classes = messages.int32_array(answer["classes"], num_real, num_classes, "classes")
        sent += len(frame)
        received += len(answer["frame"]) or 4 * num_real
        terminal.advanced(num_real)
        print("\n".join(map(str, classes)), flush=True)
    return sent, received


def serve(config: Config) -> int:
    """Serves predictions with the finished run in `run_dir` until a signal comes; returns the exit code.

    Args:
        config: of the run, `role` "server" and `remote.serve` "predictions".

    Raises:
        InputError: run folder, address or certificates cannot be used.
    """
    terminal = Terminal(1, 0)
    desk = remote.Desk(Predictor(config, terminal).serve, config.remote.max_clients, on_refused=terminal.say)
    with Signals() as signals:
        door = server.open_door(config, desk)
        try:
            terminal.say(f"predictions of {config.run_dir} at {config.remote.address}; Ctrl-C ends it")
            while not signals.received:
                time.sleep(0.2)
        finally:
            door.close()
    return 128 + signals.received


class Predictor:
    """The server's end: answers from the newest checkpoint, and changes nothing."""

    def __init__(self, config: Config, terminal: Terminal) -> None:
        """Loads the run.

        Raises:
            InputError: `run_dir` holds no finished run of a server's.
        """
        folder = Path(config.run_dir)
        _, about = checkpoint.load_half(folder / "halves" / "server")
        if "of" not in about:
            raise check.error("run_dir", config.run_dir, "the folder of a finished run with role 'server'")
        self._config, self._terminal, self._run = config, terminal, _run_of(folder)
        self._facts = about["of"]
        dataset = party.hollow(**self._facts)
        self._step, self._share, self._state = _finished(config, dataset, "server")
        self._parts = evaluate.make_parts(self._share.setup, config.train.batch_size, dataset.num_classes)
        self._receivers: dict[str, PyTree] = {}

    def serve(self, name: str, run: str, kind: str, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Returns the answer to a request; see `nscjax.remote.Desk`."""
        if kind not in messages.PREDICTION_REQUESTS:
            known = ", ".join(messages.PREDICTION_REQUESTS)
            raise remote.EnvelopeError(f"request is {kind!r:.40}; the server is there for predictions: {known}")
        envelope.check(fields, messages.PREDICTION_REQUESTS[kind], kind)
        if run != self._run:
            raise remote.EnvelopeError(
                f"the server's {self._config.run_dir} holds another run than the client's run_dir"
            )
        answer = self._open(name, **fields) if kind == "open" else self._predict(name, **fields)
        envelope.check(answer, messages.PREDICTION_ANSWERS[kind], f"answer to {kind}")
        return answer

    def _open(self, name: str, *, protocol: int, config: str, step: int, **facts: Any) -> dict[str, Any]:
        server.agreed(self._config, protocol, config)
        if facts != self._facts:
            raise remote.EnvelopeError(f"the client's data are {facts!r:.300}; the run's were {self._facts}")
        if step != self._step:
            raise remote.EnvelopeError(f"the client's half is of step {step}, the server's of {self._step}")
        self._receivers[name] = self._state.party.up
        self._terminal.say(f"client {name}")
        return {}

    def _predict(self, name: str, *, batch: int, frame: bytes, num_real: int) -> dict[str, Any]:
        if name not in self._receivers:
            raise remote.StrayedError("the server has not met this client")
        server.require_batch(batch, num_real, self._share.setup.cuts[0].spec.shape[0])
        payload = wire.decode(frame, like=self._share.layouts["up"])
        own, number, receiver = self._state.party, np.int32(batch), self._receivers[name]
        if self._parts.relay is not None:
            onward, _, self._receivers[name], _ = self._parts.relay(own, receiver, payload, None, number)
            return {"classes": b"", "frame": wire.encode(jax.device_get(onward))}
        self._receivers[name], classes = self._parts.classify(own, receiver, payload, number)
        return {"classes": messages.int32_bytes(classes[:num_real]), "frame": b""}


def _run_of(folder: Path) -> str:
    """Returns the run's name, the same at both parties."""
    if not (folder / "run.txt").exists():
        raise check.error("run_dir", str(folder), "the folder of a run of two parties")
    return (folder / "run.txt").read_text()


def _finished(config: Config, dataset: Dataset, role: str) -> tuple[int, party.Share, party.PartyState]:
    """Returns the newest step of a party's run, its share, and its state after that step."""
    share = party.share(config, dataset, role, calendar_of(config, dataset).num_steps)
    saved = Path(config.run_dir) / "checkpoints"
    own = checkpoint.steps(saved)
    if not own:
        raise check.error("run_dir", config.run_dir, "the folder of a run with a checkpoint")
    with checkpoint.Checkpoints(saved) as checkpoints:
        return max(own), share, checkpoints.restore(share.first, max(own))
