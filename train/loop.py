"""The run: prepare, train, evaluate, checkpoint, and end with a summary, the trained halves and a report.

`run` is what the program calls; `fit` is for Python: your own model, your own arrays. The host never waits for a step
before the next one is under way: it reads the metrics of step n after it has sent off step n + 1.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  # loads LAPACK, so that its threads can be limited
from threadpoolctl import threadpool_limits

from nscjax import check, split
from nscjax.split import Half
from nscjax.types import Array
from train import checkpoint, compression, evaluate, journal, report, run_folder, u_step
from train import config as configs
from train import state as states
from train import step as steps
from train.config import Config
from train.data import Dataset, load
from train.data.batches import epoch_key, epoch_order, take_batch
from train.data.checks import check_split
from train.setup import architecture_of, initial_mbps, inputs_of, network, require_known, set_up
from train.signals import Signals
from train.terminal import Terminal, waiting
from train.text import byte_size

Advance = Callable[[states.TrainState, int], tuple[states.TrainState, states.Metrics]]
"""(state, step counted from 0) -> (state, metrics)."""


class Fitted(NamedTuple):
    """What a run leaves in Python.

    Attributes:
        exit_code: 0, or 128 + the number of the signal that ended the run.
        model: both halves' functions.
        client: the client's half, (params, running state).
        server: the server's half.
        summary: as in `summary.json`; empty if a signal ended the run.
    """

    exit_code: int
    model: split.SplitModel
    client: Half
    server: Half
    summary: dict[str, Any]


def run(config: Config, explicit: frozenset[str] = frozenset()) -> int:
    """Runs what the config asks for and returns the exit code.

    Args:
        config: of the run.
        explicit: the dotted keys that the user gave, so that those without effect can be named.

    Raises:
        InputError: something from outside cannot be used.
    """
    dataset = data_to_train_on(config)
    return 0 if dataset is None else fit(config, dataset, explicit=explicit).exit_code


def data_to_train_on(config: Config) -> Dataset | None:
    """Returns the config's data, read once the run folder is known to be free; None where it holds the finished run.

    Raises:
        InputError: a name is nobody's, the run folder holds another run, or the data cannot be used.
    """
    is_finished = config.train.resume and run_folder.is_finished(config)
    if not is_finished:  # or its trace may be gone
        require_known(config)
    run_folder.require_free(config)
    if is_finished:
        print(f"{config.run_dir} holds the finished run: nothing to do.")
        return None
    with waiting(f"reading {config.data.name}"):
        return load(config.data)


# XLA's small factorisations on CPU call LAPACK, whose threads would wait for XLA's own: 1 is 10 times faster.
@threadpool_limits.wrap(limits=1, user_api="blas")
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
        config: of the run. Your own data and model stand in for `config.data` (but for `augment`) and `config.model`:
            the run folder's `config.toml` names the data set given, and the model "own".
        dataset: training and test arrays; inputs that are not uint8 images are taken as they are.
        model: your own two halves; by default the network that the config names.
        client: with `model`, the half's (params, running state) to start from; the state is () if it has none.
        server: the same for the server's half.
        explicit: see `run`.

    Raises:
        InputError: config, data and model do not fit together, the run folder holds another run, or a number was not
            finite (after a checkpoint of the last good state).
    """
    config = _as_given(config, dataset, model)
    run_folder.require_free(config)
    check_split("train", dataset.x_train, dataset.y_train, dataset.num_classes)
    check_split("test", dataset.x_test, dataset.y_test, dataset.num_classes)
    if dataset.x_test.shape[1:] != dataset.x_train.shape[1:]:
        raise check.error("the shape of a sample of x_test", dataset.x_test.shape[1:], f"{dataset.x_train.shape[1:]}")
    calendar = calendar_of(config, dataset)
    about: dict[str, Any] = {}
    if model is None:
        with waiting("making the network"):
            model, client, server = network(config, dataset)
        about = {"architecture": architecture_of(config, dataset)}
    client, server = _half("client", client), _half("server", server)
    saved = Path(config.run_dir) / "checkpoints"
    counts = checkpoint.read_counts(saved) if run_folder.can_resume(config) else None
    done = counts["totals"]["steps"] if counts else 0
    views = counts["views"] if counts else None
    with waiting("looking at the first batch: how the cut is best compressed"):
        setup, settings = set_up(config, dataset, model, client, server, calendar.num_steps, views)
    advance = _advance(setup, config, dataset, calendar, done)
    state = states.init(setup, client, server, initial_mbps(config))
    if counts:
        with checkpoint.Checkpoints(saved) as checkpoints:
            state = checkpoints.restore(state)
        if run_folder.is_finished(config):
            return _fitted(0, model, state, json.loads((Path(config.run_dir) / "summary.json").read_text()))

    # From here on the run folder is ours: all that can be refused has been.
    folder = run_folder.claim(config)
    with (
        checkpoint.Checkpoints(folder / "checkpoints") as checkpoints,
        Terminal(calendar.num_steps, done) as terminal,
        journal.Journal(folder / "metrics.jsonl", terminal, calendar, setup.raw_message_bytes, counts) as log,
        Signals() as signals,
    ):
        network_name = f"{config.model.name} cut after {config.model.cut}" if about else "a model of your own, cut"
        terminal.say(f"{config.run_dir}: {dataset.name}, {network_name} {setup.cuts[0].spec.shape}")
        caps = [cap for cut in setup.cuts for cap in cut.caps]
        _announce(terminal, config, settings, caps, explicit, done)
        views = {way: settings[way].get("view", "") for way in settings}
        score = _scorer(setup, config, dataset, terminal)

        def save(state: states.TrainState) -> None:
            sound = state._replace(is_sound=jnp.asarray(True))
            checkpoints.save(log.totals.steps, sound, {**log.counts(), "views": views})

        try:
            state = train(state, advance, score, save, calendar, log, signals)
        except journal.Broken as broken:
            raise check.InputError(
                f"step {log.totals.steps + 1}: not finite: {broken}. The last good state, after step "
                f"{log.totals.steps}, is in {folder / 'checkpoints'}. A lower train.learning_rate or a longer "
                "train.warmup is the usual cure; it needs a run_dir of its own."
            ) from None
        if signals.received:
            terminal.say(f"stopped after step {log.totals.steps}; --train.resume true goes on from here")
            return _fitted(128 + signals.received, model, state, {})
        fitted = _fitted(0, model, state, log.summary(config.seed, *_digests(state)))
        page = _publish(folder, fitted, {**about, **inputs_of(setup.inputs, dataset)})
    terminal.finished(fitted.summary, page)
    return fitted


def _as_given(config: Config, dataset: Dataset, model: split.SplitModel | None) -> Config:
    """Returns the config with the data set's name, and the model's if it is one of the caller's own."""
    data = dataclasses.replace(config.data, name=dataset.name)
    named = config.model
    if model is not None:
        named = dataclasses.replace(
            named, name="own", cut="own", second_cut=None if model.tail_apply is None else "own"
        )
    return dataclasses.replace(config, data=data, model=named)


def _half(name: str, half: Any) -> Half:
    """Returns a half's (params, running state) with arrays for leaves."""
    try:
        params, state = half
    except (TypeError, ValueError):
        raise check.error(
            name,
            half if half is None else type(half).__name__,
            "(params, running state); the state is () if it has none",
        ) from None
    return jax.tree.map(jnp.asarray, (params, state))


def _publish(folder: Path, fitted: Fitted, about: dict[str, Any]) -> Path:
    """Writes the trained halves, the summary and the report, in this order; returns the report's path."""
    for name, half in (("client", fitted.client), ("server", fitted.server)):
        checkpoint.save_half(folder / "halves" / name, half, about)
    run_folder.write_whole(folder / "summary.json", json.dumps(fitted.summary, indent=2, allow_nan=False) + "\n")
    return report.write(folder)


def _fitted(exit_code: int, model: split.SplitModel, state: states.TrainState, summary: dict[str, Any]) -> Fitted:
    client, server = state.client, state.server
    return Fitted(exit_code, model, (client.params, client.state), (server.params, server.state), summary)


def train(
    state: Any,
    advance: Callable[[Any, int], tuple[Any, states.Metrics]],
    score: Callable[[Any], dict[str, Any]],
    save: Callable[[Any], None],
    calendar: journal.Calendar,
    log: journal.Journal,
    signals: Signals,
    is_save_asked: Callable[[], bool] = lambda: False,
) -> Any:
    """Returns the state after the last step, or after the one at which a signal came.

    Args:
        state: of a local run, or of one party.
        advance: (state, step counted from 0) -> (state, metrics).
        score: state -> fields of an evaluation.
        save: saves a checkpoint of the state.
        calendar: what happens when.
        log: of the run; says how many steps were made before.
        signals: that end the run.
        is_save_asked: whether the last step has brought the wish for a checkpoint.

    Raises:
        Broken: a number was not finite; the last good state has been saved.
    """
    pending = None
    try:
        for step in range(log.totals.steps, calendar.num_steps):
            state, metrics = advance(state, step)
            if pending is not None:
                log.step(pending)
            pending = metrics
            # Looked at once: a signal that comes later in this step ends the run after the next.
            is_last = bool(signals.received)
            is_eval_due = calendar.is_eval_due(step + 1)
            is_save_due = is_last or calendar.is_checkpoint_due(step + 1) or is_save_asked()
            if is_eval_due or is_save_due:
                log.step(pending)
                pending = None
            if is_eval_due:
                log.evaluated(score(state))
            if is_save_due:
                save(state)
            if is_last:
                break
    except journal.Broken:
        if pending is not None and int(jax.device_get(pending.broken)) < 0:  # it was another step that broke
            log.step(pending)
        # The steps after the broken one left the state as it was: it is the last good one.
        save(state)
        raise
    return state


def _digests(state: states.TrainState) -> list[str]:
    return [journal.params_sha256(half.params) for half in (state.client, state.server)]


def calendar_of(config: Config, dataset: Dataset) -> journal.Calendar:
    """Returns what happens when; raises an `InputError` where a batch is larger than the training set."""
    settings, num_train = config.train, len(dataset.x_train)
    if settings.batch_size > num_train:
        raise check.error(
            "train.batch_size", settings.batch_size, f"at most {num_train}, the training samples there are"
        )
    steps_per_epoch = num_train // settings.batch_size
    num_steps = settings.steps or settings.epochs * steps_per_epoch
    return journal.Calendar(
        num_steps, steps_per_epoch, settings.log_every, settings.eval_every, settings.checkpoint_every
    )


def _scorer(
    setup: states.Setup, config: Config, dataset: Dataset, terminal: Terminal
) -> Callable[[states.TrainState], dict[str, Any]]:
    """Returns the function that evaluates a state on the test set."""
    x, y = jnp.asarray(dataset.x_test), jnp.asarray(dataset.y_test)
    parts = evaluate.make_parts(setup, config.train.batch_size, dataset.num_classes)
    return functools.partial(
        evaluate.evaluate, parts, x=x, y=y, batch_size=config.train.batch_size, num_classes=dataset.num_classes,
        progress=terminal.evaluating,
    )  # fmt: skip


def _advance(setup: states.Setup, config: Config, dataset: Dataset, calendar: journal.Calendar, done: int) -> Advance:
    """Returns the function that makes one step: from data on the device, or streamed from the host."""
    if config.data.stream:
        return _advance_streamed(setup, config, dataset, done, calendar.num_steps)
    return _advance_on_device(setup, config, dataset, calendar.steps_per_epoch)


def _advance_on_device(setup: states.Setup, config: Config, dataset: Dataset, steps_per_epoch: int) -> Advance:
    batch_of = batches_on_device(config, jnp.asarray(dataset.x_train), jnp.asarray(dataset.y_train), steps_per_epoch)
    train_step = _train_step(setup)
    return lambda state, step: train_step(state, *batch_of(step))


def _train_step(setup: states.Setup) -> Callable:
    """Returns the function from (state, inputs, labels, sample ids) to (state, metrics)."""
    kind: Any = u_step if setup.is_u_shaped else steps
    return functools.partial(kind.train_step, kind.programs(setup))


def batches_on_device(
    config: Config, x: Array, y: Array, steps_per_epoch: int
) -> Callable[[int], tuple[Array, Array, Array]]:
    """Returns the function from a step, counted from 0, to its batch: inputs, labels and sample ids.

    Args:
        config: of the run.
        x: all training inputs, on the device.
        y: their labels.
        steps_per_epoch: of one pass over them.
    """
    order_of = jax.jit(lambda epoch: epoch_order(epoch_key(config.seed, epoch), len(x)))
    take = jax.jit(functools.partial(take_batch, batch_size=config.train.batch_size))
    order: dict[int, Array] = {}

    def batch_of(step):
        epoch = step // steps_per_epoch
        if epoch not in order:
            order.clear()
            order[epoch] = order_of(epoch)
        return take(x, y, order[epoch], np.int32(step % steps_per_epoch))

    return batch_of


def _advance_streamed(
    setup: states.Setup, config: Config, dataset: Dataset, start_step: int, num_steps: int
) -> Advance:
    from train.data import stream  # grain is optional

    batches = stream.batches(
        dataset.x_train, dataset.y_train, seed=config.seed, batch_size=config.train.batch_size,
        num_steps=num_steps, start_step=start_step,
    )  # fmt: skip
    train_step = _train_step(setup)
    return lambda state, _step: train_step(state, *map(jnp.asarray, next(batches)))


def _announce(
    terminal: Terminal,
    config: Config,
    settings: dict[str, dict[str, Any]],
    caps: Sequence[int],
    explicit: frozenset[str],
    done: int,
) -> None:
    """Says how the cut is compressed and where the run goes on."""
    width = max(map(len, settings))
    for (way, own), cap in zip(settings.items(), caps, strict=True):
        direction, used = getattr(config.compress, way), ", ".join(f"{key} {value}" for key, value in own.items())
        told = [direction.method + (f" ({used})" if used else "")]
        if direction.method != "identity":
            told += ["no ratio given" if direction.ratio is None else f"at most {byte_size(cap)} a message"]
            told += [f"feedback {direction.feedback}"] if direction.feedback != "none" else []
        terminal.say(f"{way:>{width}}: {', '.join(told)}")
        unused = configs.unused_keys(explicit, way, compression.used_keys(way, direction))
        if unused:
            terminal.say(f"      ignored, for {direction.method} does not use them here: {', '.join(unused)}")
        followed = {f"compress.{way}.{key}" for key in compression.followed_keys(way, config.compress)} & explicit
        if followed:
            there = compression.GRADIENTS[way]
            terminal.say(f"      ignored, for gradients have those of compress.{there}: {', '.join(sorted(followed))}")
    if len(settings) == 2:
        idle = [key for way in ("second_up", "second_down") for key in configs.unused_keys(explicit, way, ())]
        if idle:
            terminal.say(f"      ignored, for there is no model.second_cut: {', '.join(idle)}")
    if done:
        terminal.say(f"resumed after step {done}")
