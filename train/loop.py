"""The run: prepare, train, evaluate, checkpoint, and end with a summary, the trained halves and a report.

`run` is what the program calls; `fit` is for Python: your own model, your own arrays. The host never waits for a step
before the next one is under way: it reads the metrics of step n after it has sent off step n + 1.
"""

import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nscjax import check, measure, split
from nscjax.types import Array
from train import checkpoint, compression, evaluate, journal, report, run_folder
from train import config as configs
from train import state as states
from train.config import Config
from train.data import Dataset, load
from train.data.batches import epoch_key, epoch_order, take_batch
from train.setup import Half, architecture_of, initial_mbps, network, set_up
from train.terminal import Terminal

Advance = Callable[[states.TrainState, int], tuple[states.TrainState, states.Metrics]]
"""(state, step counted from 0) -> (state, metrics); the state passed in is used up."""


class Fitted(NamedTuple):
    """What a run leaves in Python.

    Attributes:
        exit_code: 0, or 128 + the number of the signal that ended the run.
        model: both halves' functions.
        client: the client's half, (params, running state).
        server: the server's half.
        summary: as in `summary.json`; None if a signal ended the run.
    """

    exit_code: int
    model: split.SplitModel
    client: Half
    server: Half
    summary: dict[str, Any] | None


class Broken(Exception):
    """A step met a number that is not finite."""


def run(config: Config, explicit: frozenset[str] = frozenset()) -> int:
    """Runs what the config asks for and returns the exit code.

    Args:
        config: of the run.
        explicit: the dotted keys that the user gave, so that those without effect can be named.

    Raises:
        InputError: something from outside cannot be used.
    """
    if config.role != "local":
        raise check.error("role", config.role, "'local'", "Runs in two processes do not exist yet.")
    run_folder.require_free(config)
    if config.train.resume and run_folder.is_finished(config):
        print(f"{config.run_dir} holds the finished run: nothing to do.")
        return 0
    return fit(config, load(config.data), explicit=explicit).exit_code


def fit(
    config: Config,
    dataset: Dataset,
    model: split.SplitModel | None = None,
    client: Half | None = None,
    server: Half | None = None,
    explicit: frozenset[str] = frozenset(),
) -> Fitted:
    """Trains a split model on a data set, into `config.run_dir`.

    Args:
        config: of the run. With your own model `config.model` is not used, nor is `config.data` but for `augment`.
        dataset: training and test arrays; inputs that are not uint8 images are taken as they are.
        model: your own two halves; by default the network that the config names.
        client: with `model`, the half's (params, running state) to start from; the state is () if it has none.
        server: the same for the server's half.
        explicit: see `run`.

    Raises:
        InputError: config, data and model do not fit together, the run folder holds another run, or a number was not
            finite (after a checkpoint of the last good state).
    """
    started = time.monotonic()
    run_folder.require_free(config)
    steps_per_epoch = _steps_per_epoch(config, dataset)
    num_steps = config.train.steps or config.train.epochs * steps_per_epoch
    about: dict[str, Any] = {}
    if model is None:
        model, client, server = network(config, dataset)
        about = {"architecture": architecture_of(config, dataset)}
    if client is None or server is None:
        raise check.error("client and server", None, "(params, state) of each half", "Your own model brings its own.")
    resumed = checkpoint.read_counts(Path(config.run_dir) / "checkpoints") if config.train.resume else None
    views = resumed["views"] if resumed else None
    setup, spec, settings = set_up(config, dataset, model, client, server, num_steps, views)
    views = {way: settings[way].get("view", "") for way in journal.WAYS}
    state = states.init(setup, spec, client, server, initial_mbps(config))
    folder = run_folder.claim(config)
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    totals = journal.Totals()
    if resumed:
        state, totals = checkpoints.restore(state), journal.Totals(**resumed["totals"])

    raw_message_bytes = measure.raw_bytes(spec.shape)
    metrics_file = run_folder.MetricsFile(folder / "metrics.jsonl", totals.metrics_bytes)
    advance = _advance(setup, config, dataset, steps_per_epoch, totals.steps, num_steps)
    eval_step = evaluate.make_step(setup, config.train.batch_size, dataset.num_classes)
    test_set = jnp.asarray(dataset.x_test), jnp.asarray(dataset.y_test)
    wall_before = totals.wall_seconds
    last_eval: dict[str, Any] = {}

    with Terminal(num_steps, totals.steps) as terminal, _Signals() as signals:
        _announce(terminal, config, settings, explicit, spec, resumed)

        def take(metrics: states.Metrics) -> None:
            metrics = jax.device_get(metrics)
            if metrics.broken >= 0:
                raise Broken(states.TENSORS[metrics.broken])
            totals.add(metrics)
            line = journal.train_line(metrics, totals, journal.epoch_of(totals.steps, steps_per_epoch))
            if totals.steps % config.train.log_every == 0 or totals.steps == num_steps:
                metrics_file.write(line)
            terminal.step(line, totals.ratio(raw_message_bytes))

        def score() -> dict[str, Any]:
            scores = evaluate.evaluate(
                eval_step, state, *test_set, config.train.batch_size, dataset.num_classes, terminal.evaluating
            )
            line = journal.eval_line(scores, totals, journal.epoch_of(totals.steps, steps_per_epoch))
            metrics_file.write(line)
            terminal.evaluated(line, totals.ratio(raw_message_bytes))
            return line

        def save() -> None:
            totals.wall_seconds = wall_before + time.monotonic() - started
            totals.metrics_bytes = metrics_file.num_bytes()
            counts = {"totals": dataclasses.asdict(totals), "views": views, "last_eval": last_eval}
            checkpoints.save(totals.steps, state, counts)

        last_eval = resumed["last_eval"] if resumed else {}
        pending = None
        try:
            for step in range(totals.steps, num_steps):
                state, metrics = advance(state, step)
                if pending is not None:
                    take(pending)
                pending = metrics
                eval_due = journal.is_due(step + 1, config.train.eval_every, steps_per_epoch, num_steps)
                save_due = journal.is_due(step + 1, config.train.checkpoint_every, steps_per_epoch, num_steps)
                if eval_due or save_due or signals.received:
                    take(pending)
                    pending = None
                if eval_due:
                    last_eval = score()
                if save_due or signals.received:
                    save()
                if signals.received:
                    terminal.say(f"stopped at step {totals.steps}; go on with --train.resume true")
                    return _fitted(128 + signals.received, model, state, None)
        except Broken as broken:
            state = state._replace(is_sound=jnp.asarray(True))
            save()
            raise check.InputError(
                f"step {totals.steps + 1}: {broken} not finite; the last good state, after step {totals.steps}, is in "
                f"{folder / 'checkpoints'}. A lower train.learning_rate or a longer train.warmup is the usual cure."
            ) from None
        finally:
            metrics_file.close()
            checkpoints.close()
        totals.wall_seconds = wall_before + time.monotonic() - started
        summary = journal.summary(
            last_eval, totals, raw_message_bytes, config.seed, state.client.params, state.server.params
        )
        fitted = _fitted(0, model, state, summary)
        for name, half in (("client", fitted.client), ("server", fitted.server)):
            checkpoint.save_half(folder / "halves" / name, half, {**about, **_inputs_of(setup)})
        run_folder.write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        page = report.write(folder)
    terminal.finished(summary, page)
    return fitted


def _fitted(exit_code, model, state, summary) -> Fitted:
    client, server = state.client, state.server
    return Fitted(exit_code, model, (client.params, client.state), (server.params, server.state), summary)


def _steps_per_epoch(config: Config, dataset: Dataset) -> int:
    batch_size = config.train.batch_size
    if batch_size > len(dataset.x_train):
        raise check.error("train.batch_size", batch_size, f"at most {len(dataset.x_train)}, the training samples there are")
    return len(dataset.x_train) // batch_size


def _advance(
    setup: states.Setup, config: Config, dataset: Dataset, steps_per_epoch: int, start_step: int, num_steps: int
) -> Advance:
    """Returns the function that makes one step: from data on the device, or streamed from the host."""
    if config.data.stream:
        return _advance_streamed(setup, config, dataset, start_step, num_steps)
    return _advance_on_device(setup, config, dataset, steps_per_epoch)


def _advance_on_device(setup: states.Setup, config: Config, dataset: Dataset, steps_per_epoch: int) -> Advance:
    x, y = jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train)
    order_of = jax.jit(lambda epoch: epoch_order(epoch_key(config.seed, epoch), len(x)))
    order: dict[int, Array] = {}

    def step_fn(state, x, y, order):
        batch = take_batch(x, y, order, state.step % steps_per_epoch, config.train.batch_size)
        return states.train_step(setup, state, *batch)

    jitted = jax.jit(step_fn, donate_argnums=0)

    def advance(state, step):
        epoch = step // steps_per_epoch
        if epoch not in order:
            order.clear()
            order[epoch] = order_of(epoch)
        return jitted(state, x, y, order[epoch])

    return advance


def _advance_streamed(
    setup: states.Setup, config: Config, dataset: Dataset, start_step: int, num_steps: int
) -> Advance:
    from train.data import stream  # grain is optional

    batches = stream.batches(
        dataset.x_train, dataset.y_train, seed=config.seed, batch_size=config.train.batch_size,
        num_steps=num_steps, start_step=start_step,
    )  # fmt: skip
    jitted = jax.jit(lambda state, *batch: states.train_step(setup, state, *batch), donate_argnums=0)
    return lambda state, step: jitted(state, *next(batches))


def _inputs_of(setup: states.Setup) -> dict[str, Any]:
    """Returns how the client's half wants its inputs, JSON-ready."""
    if setup.mean is None:
        return {"mean": None, "std": None}
    return {"mean": [float(value) for value in setup.mean], "std": [float(value) for value in setup.std]}


def _announce(terminal, config, settings, explicit, spec, resumed) -> None:
    """Says what is going to run."""
    terminal.say(f"{config.run_dir}: {config.data.name}, {config.model.name} cut after {config.model.cut} {spec.shape}")
    for way in journal.WAYS:
        direction = getattr(config.compress, way)
        used = ", ".join(f"{key} {value}" for key, value in settings[way].items())
        terminal.say(f"{way:>4}: {direction.method}" + (f" ({used})" if used else ""))
        unused = configs.unused_keys(explicit, way, compression.parameters(direction))  # type: ignore[arg-type]
        if unused:
            terminal.say(f"      ignored, for {direction.method} does not use them: {', '.join(unused)}")
    if resumed:
        terminal.say(f"resumed after step {resumed['totals']['steps']}")


class _Signals:
    """SIGINT and SIGTERM as a value that the loop looks at; a second one is not held back."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])
