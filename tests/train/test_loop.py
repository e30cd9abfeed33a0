import contextlib
import dataclasses
import hashlib
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nscjax import compress, split, wire
from nscjax.check import InputError
from tests.train import runs
from tests.train.runs import ROOT, count_compilations, lines, made_folder, own_config, own_dataset, own_model, snapshot
from tests.train.test_journal import EVAL_FIELDS, SUMMARY_FIELDS, TRAIN_FIELDS
from train import checkpoint, data, journal, loop, main, run_folder
from train import config as configs

pytestmark = pytest.mark.usefixtures("quick")

NUM_STEPS, RAW = 12, 4 * 8 * 16  # of a run of `runs.SMALL`; of its cut


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_folder(tmp_path_factory.mktemp("loop"))


def argv(folder, name, *more):
    """Returns the command line of a small run into `folder / name`, over a link that changes."""
    link = ("--link.trace", str(folder / "trace.csv"), "--link.deadline_s", "0.1", "--data.augment", "true")
    feedback = ("--compress.up.feedback", "across_steps", "--compress.down.feedback", "per_sample")
    return ["--config", str(folder / "small.toml"), "--run_dir", str(folder / name), *link, *feedback, *more]


def run(folder, name, *more):
    return main.main(argv(folder, name, *more))


@pytest.fixture(scope="module")
def unbroken(folder):
    """(the run folder of a run from start to end, how often each function was compiled for it)."""
    with count_compilations() as compilations:
        assert run(folder, "unbroken") == 0
    return folder / "unbroken", compilations


@pytest.fixture
def stop_at(monkeypatch):
    """Returns a function that sends this process a signal as soon as it has taken in the metrics of a step."""

    def arm(step, number):
        take_in = journal.Journal.step

        def step_and_signal(self, metrics):
            take_in(self, metrics)
            if self.totals.steps == step:
                signal.raise_signal(number)

        monkeypatch.setattr(journal.Journal, "step", step_and_signal)

    yield arm
    monkeypatch.undo()


def assert_same_run(one, other):
    """Asserts equal totals, hashes and metrics of two finished runs."""
    assert runs.summary(one) == runs.summary(other)
    assert lines(one) == lines(other)


# ---- a whole run ----


def test_a_run_leaves_these_files(unbroken):
    run_dir, _ = unbroken
    assert {path.name for path in run_dir.iterdir()} == {*run_folder.OWN_NAMES} - {
        "run.txt",
        "closed",
    }  # of two parties
    assert configs.from_toml(run_dir / "config.toml") == configs.load(argv(run_dir.parent, "unbroken")).config
    # The newest and the one before it; the counts of both are whole.
    assert sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir()) == [8, 12]
    assert checkpoint.read_counts(run_dir / "checkpoints")["totals"]["steps"] == NUM_STEPS


def test_metrics_have_the_fields_of_the_contract(unbroken):
    run_dir, _ = unbroken
    train, evals = lines(run_dir, "train"), lines(run_dir, "eval")
    assert [line["step"] for line in train] == list(range(1, NUM_STEPS + 1))
    assert [line["step"] for line in evals] == [6, 12]
    assert all(list(line) == TRAIN_FIELDS for line in train)
    assert all(list(line) == EVAL_FIELDS for line in evals)
    assert [line["epoch"] for line in train] == [1] * 6 + [2] * 6
    assert set(runs.summary(run_dir)) == set(SUMMARY_FIELDS) - {"wall_seconds"}


def test_totals_are_sums_over_the_steps(unbroken):
    run_dir, _ = unbroken
    train, evals, summary = lines(run_dir, "train"), lines(run_dir, "eval"), runs.summary(run_dir)
    for line in evals:
        so_far = train[: line["step"]]
        for way in ("up", "down"):
            assert line[f"total_{way}_bytes"] == sum(step[f"{way}_bytes"] for step in so_far)
        assert line["total_link_seconds"] == pytest.approx(sum(step["link_seconds"] for step in so_far))
    assert {name: summary[name] for name in EVAL_FIELDS[1:]} == {name: evals[-1][name] for name in EVAL_FIELDS[1:]}
    sent = summary["total_up_bytes"] + summary["total_down_bytes"]
    for way in ("up", "down"):
        assert summary[f"raw_{way}_bytes"] == (NUM_STEPS - summary[f"{way}_skipped"]) * RAW
    assert summary["ratio"] == (summary["raw_up_bytes"] + summary["raw_down_bytes"]) / sent
    assert summary["up_skipped"] == train[-1]["up_skipped"] == sum(line["up_rank"] == 0 for line in train)
    assert summary["down_skipped"] == train[-1]["down_skipped"] == sum(line["down_rank"] == 0 for line in train)
    assert (summary["steps"], summary["seed"]) == (NUM_STEPS, 0)


def test_no_frame_is_over_its_budget_however_the_link_changes(unbroken):
    run_dir, _ = unbroken
    train = lines(run_dir, "train")
    for way in ("up", "down"):
        # A skipped message is a header, which tells the other end so, however small the budget was.
        assert all(line[f"{way}_bytes"] <= line[f"{way}_budget_bytes"] or line[f"{way}_rank"] == 0 for line in train)
        assert len({line[f"{way}_rank"] for line in train}) > 2
    # Skipped as well as full messages occur.
    ranks = [line[f"{way}_rank"] for line in train for way in ("up", "down")]
    assert min(ranks) == 0
    assert max(ranks) == 6


def test_bytes_are_those_of_real_frames(folder):
    """Of a method whose frame's length is known from its rank: that of `nsc_sl` depends on the tensor."""
    assert run(folder, "sparse", "--compress.up.method", "top_k", "--train.steps", "4") == 0
    compressor = compress.METHODS["top_k"]()
    x = jax.random.normal(jax.random.key(1), (8, 16))
    for line in lines(folder / "sparse", "train"):
        side = compress.SideInfo(key=jax.random.key(2), budget_bytes=jnp.int32(line["up_budget_bytes"]))
        payload, _ = compressor.compress(x, (), side)
        assert (int(payload.rank), len(wire.encode(payload))) == (line["up_rank"], line["up_bytes"])


def test_hashes_are_of_the_halves_that_were_saved(unbroken):
    run_dir, _ = unbroken
    digests = []
    for name in ("client", "server"):
        (params, _), about = checkpoint.load_half(run_dir / "halves" / name)
        content = b"".join(np.asarray(leaf, "<f4").tobytes() for leaf in jax.tree.leaves(params))
        digests.append(hashlib.sha256(content).hexdigest())
        assert about["architecture"]["cut"] == "hidden1"
    summary = runs.summary(run_dir)
    assert [summary["client_params_sha256"], summary["server_params_sha256"]] == digests
    assert summary["params_sha256"] == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_each_function_is_compiled_once_whatever_the_budget(unbroken):
    _, compilations = unbroken
    names = ("send", "answer", "receive", "settle", "present", "grade")
    assert {name: compilations[name] for name in names} == dict.fromkeys(names, 1)


# ---- stopped and resumed ----


CHILD = """
import os, signal, sys
from train import journal, main, signals
signals.end_at_once()  # as the program does
take_in = journal.Journal.step
def step_and_signal(self, metrics):
    take_in(self, metrics)
    if self.totals.steps == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
journal.Journal.step = step_and_signal
sys.exit(main.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("number", "step", "exit_code", "saved"), [
    (signal.SIGKILL, 7, -signal.SIGKILL, 4), (signal.SIGTERM, 9, 143, 10), (signal.SIGINT, 1, 130, 2),
])  # fmt: skip
def test_a_process_that_was_ended_goes_on_as_if_it_had_not_been(
    unbroken, folder, capfd, number, step, exit_code, saved
):
    name = f"ended-by-{int(number)}"
    words = [sys.executable, "-c", CHILD, str(step), str(int(number)), *argv(folder, name)]
    done = subprocess.run(words, cwd=ROOT, env=runs.child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / name / "summary.json").exists()
    assert checkpoint.read_counts(folder / name / "checkpoints")["totals"]["steps"] == saved
    with count_compilations() as compilations:
        assert run(folder, name, "--train.resume", "true") == 0
    assert f"resumed after step {saved}" in capfd.readouterr().err
    assert_same_run(folder / name, unbroken[0])
    assert (compilations["answer"], compilations["grade"]) == (1, 1)


def test_a_run_may_be_stopped_again_and_again(unbroken, folder, stop_at, capfd):
    # The first start finds nothing to resume. Stopped at once, at the end of an epoch, at a checkpoint and after the
    # last step; what a crash wrote after a checkpoint is cut off.
    for step in (1, 6, 8):
        stop_at(step, signal.SIGTERM)
        assert run(folder, "again", "--train.resume", "true") == 143
        assert "--train.resume true goes on from here" in capfd.readouterr().err
        with (folder / "again" / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 999}\n{"kind": "tr')
    stop_at(NUM_STEPS, signal.SIGINT)
    assert run(folder, "again", "--train.resume", "true") == 130
    assert run(folder, "again", "--train.resume", "true") == 0
    assert_same_run(folder / "again", unbroken[0])


def test_streamed_data_make_the_same_run_resumed_or_not(unbroken, folder, stop_at):
    pytest.importorskip("grain", reason="grain (the extra `stream`) is not installed")
    stop_at(5, signal.SIGTERM)
    assert run(folder, "streamed", "--data.stream", "true") == 143
    assert run(folder, "streamed", "--data.stream", "true", "--train.resume", "true") == 0
    assert_same_run(folder / "streamed", unbroken[0])


def test_resuming_a_finished_run_touches_nothing(unbroken, folder, capfd):
    before = snapshot(unbroken[0])
    assert run(folder, "unbroken", "--train.resume", "true") == 0
    assert snapshot(unbroken[0]) == before
    assert "holds the finished run" in capfd.readouterr().out


def test_where_the_data_come_from_may_change_between_start_and_resume(unbroken, folder, capfd):
    assert run(folder, "unbroken", "--train.resume", "true", "--data.download", "true") == 0
    assert "holds the finished run" in capfd.readouterr().out


def test_resuming_another_config_names_what_differs(unbroken, folder, capfd):
    before = snapshot(unbroken[0])
    assert run(folder, "unbroken", "--train.resume", "true", "--seed", "3", "--compress.up.max_rank", "5") == 2
    assert "These differ: seed, compress.up.max_rank." in capfd.readouterr().err
    assert snapshot(unbroken[0]) == before


def test_resuming_on_other_data_is_refused_and_leaves_the_folder(folder, stop_at):
    stop_at(6, signal.SIGTERM)
    config = configs.load(argv(folder, "other")).config
    dataset = data.load(config.data)
    assert loop.fit(config, dataset).exit_code == 143
    before = snapshot(folder / "other")
    resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    with pytest.raises(InputError, match=r"checkpoint 7: .*cache is '.*\[48, 16\]'; allowed: .*\[47, 16\]"):
        loop.fit(resumed, dataset._replace(x_train=dataset.x_train[:47], y_train=dataset.y_train[:47]))
    assert snapshot(folder / "other") == before


# ---- a folder that is taken, input that cannot be used ----


def test_another_run_is_refused_and_left_alone(unbroken, folder, capfd):
    before = snapshot(unbroken[0])
    assert run(folder, "unbroken") == 2
    assert "allowed: a folder without a run" in capfd.readouterr().err
    assert snapshot(unbroken[0]) == before


BAD = [
    (("--compress.up.method", "nsc_ls"), "compress.up.method is 'nsc_ls'; allowed: 'identity', 'nsc_sl'"),
    (("--model.name", "mlq"), "model.name is 'mlq'; allowed: 'mlp',"),
    (("--model.cut", "hidden9"), "model.cut is 'hidden9'; allowed: 'hidden1', 'hidden2', 'hidden3'"),
    (("--model.norm", "layer"), "model.norm is 'layer'; allowed: 'batch', 'group'"),
    (("--compress.down.view", "BHW,C"), "compress.down.view is 'BHW,C'; allowed: 'B,D', 'auto', 'calibrate'"),
    (("--link.estimator", "oracle"), "link.estimator is 'oracle'; allowed: 'ewma', 'harmonic', 'quantile'"),
    (("--link.trace", "absent.csv"), "trace is 'absent.csv'; allowed: an existing CSV file"),
    (("--data.dir", "absent.npz"), "absent.npz"),
    (("--data.name", "mnist", "--data.dir", "absent"), "absent"),
    (("--data.num_train", "49"), "data.num_train is 49; allowed: at most 48"),
    (("--train.batch_size", "49"), "train.batch_size is 49; allowed: at most 48"),
    (("--compress.down.ratio", "40"), "compress.down: budget of a frame for a cut of (8, 16) is '12 bytes'"),
    (("--link.trace", "null", "--link.up_mbps", "0.001"), "compress.up: budget of a frame"),
    (("--link.latency_ms", "100", "--link.trace", "null", "--link.down_mbps", "1"), "compress.up: budget of a frame"),
    (("--link.latency_ms", "100"), "budget of a frame for a cut of (8, 16) is '0 bytes'"),
    (("--role", "server"), "ca.pem is missing: `make certs` makes them"),
    (("--train.learning_rat", "1"), "Did you mean 'train.learning_rate'?"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_input_that_cannot_be_used_costs_no_earlier_run(unbroken, folder, capfd, words, message):
    before = snapshot(unbroken[0])
    assert run(folder, "unbroken", "--overwrite", "true", *words) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert snapshot(unbroken[0]) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.name", "mlq"), ("model.cut", "hidden9"), ("compress.up.method", "nsc_ls"),
        ("compress.down.view", "C,C"), ("link.estimator", "oracle"), ("link.trace", "absent.csv"),
    ],
)  # fmt: skip
def test_names_are_looked_at_before_data(folder, monkeypatch, capfd, key, value):
    monkeypatch.setattr(loop, "load", lambda _: pytest.fail("data were read"))
    assert run(folder, "never", f"--{key}", value) == 2
    assert f"{key.removeprefix('link.') if value == 'absent.csv' else key} is {value!r}" in capfd.readouterr().err


def test_digits_have_no_folder(folder, capfd):
    assert run(folder, "never", "--data.name", "digits") == 2
    assert "allowed: nothing with data.name 'digits'." in capfd.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_one_line(folder, capfd):
    (folder / "file").write_text("mine")
    assert run(folder, "file/run") == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("error: run_dir is ")
    assert f"{folder / 'file'} is a file." in printed.err
    assert printed.err.count("\n") == 1
    assert (folder / "file").read_text() == "mine"


def test_streaming_that_cannot_be_done_costs_no_earlier_run(tmp_path):
    config = own_config(tmp_path / "run")
    run_folder.claim(config)
    config = dataclasses.replace(config, overwrite=True, data=dataclasses.replace(config.data, stream=True))
    before = snapshot(tmp_path)
    # Streamed are images; these are float vectors.
    with pytest.raises(InputError, match="the dtype of x is 'float32'; allowed: uint8"):
        loop.fit(config, own_dataset(), *own_model())
    assert snapshot(tmp_path) == before


# ---- from Python: own model, own arrays ----


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    config = own_config(tmp_path_factory.mktemp("own") / "run")
    given = own_model()
    fitted = loop.fit(config, own_dataset(), *given)
    assert runs.same_leaves(given[1:], own_model()[1:])  # what was given is still the caller's
    return config, fitted


def test_ones_own_model_learns(own):
    config, fitted = own
    assert fitted.exit_code == 0
    assert fitted.summary["accuracy"] > 0.7
    assert runs.summary(config.run_dir).items() <= fitted.summary.items()
    assert not runs.same_leaves(fitted.client, own_model()[1])


def test_ones_own_model_needs_its_halves(tmp_path):
    with pytest.raises(InputError, match=r"client is None; allowed: \(params, running state\)"):
        loop.fit(own_config(tmp_path / "run"), own_dataset(), own_model()[0])
    assert not (tmp_path / "run").exists()


def test_evaluating_more_often_changes_nothing_else(own, tmp_path):
    _, fitted = own
    often = loop.fit(own_config(tmp_path / "run", eval_every=2), own_dataset(), *own_model())
    assert [line["step"] for line in lines(tmp_path / "run", "eval")] == [2, 4, 6, 8, 10, 12]
    assert {**often.summary, "wall_seconds": 0} == {**fitted.summary, "wall_seconds": 0}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """What a run with nothing compressed returns."""
    direction = configs.DirectionConfig(method="identity", energy=0.5)
    config = own_config(tmp_path_factory.mktemp("left-alone") / "run")
    config = dataclasses.replace(config, compress=configs.CompressConfig(direction, direction))
    explicit = frozenset({"compress.up.method", "compress.up.energy", "compress.up.max_rank", "train.epochs"})
    with contextlib.redirect_stderr(io.StringIO()) as log:
        return loop.fit(config, own_dataset(), *own_model(), explicit=explicit), log.getvalue()


def test_left_alone_the_cut_costs_no_accuracy(left_alone):
    summary = left_alone[0].summary
    assert summary["accuracy"] == summary["accuracy_uncompressed"]
    assert 0.9 < summary["ratio"] < 1


def test_keys_without_effect_are_named_once(left_alone):
    log = left_alone[1]
    assert "run: own, a model of your own, cut (8, 6)\n" in log
    assert "up: identity\n" in log
    assert "ignored, for identity does not use them here: compress.up.energy, compress.up.max_rank\n" in log
    assert log.count("ignored") == 1


@pytest.mark.parametrize("is_skipped_up", [True, False])
def test_on_a_link_too_slow_for_anything_the_halves_stay(tmp_path, is_skipped_up):
    (tmp_path / "slow.csv").write_text("time_s,mbit_per_s\n0,0.00001\n100000,1\n")
    link = {"deadline_s": 1.0, "initial_mbps": 0.0003, "down_trace": str(tmp_path / "slow.csv")}
    if is_skipped_up:
        link["up_trace"] = link["down_trace"]
    config = dataclasses.replace(own_config(tmp_path / "run", optimizer="adamw"), link=configs.LinkConfig(**link))
    fitted = loop.fit(config, own_dataset(), *own_model())
    assert fitted.exit_code == 0
    summary = fitted.summary
    assert (summary["up_skipped"], summary["down_skipped"]) == (NUM_STEPS if is_skipped_up else 0, NUM_STEPS)
    assert runs.same_leaves(fitted.client, own_model()[1])
    assert runs.same_leaves(fitted.server, own_model()[2]) == is_skipped_up
    assert (Path(config.run_dir) / "report.html").exists()


def newest(run_dir):
    """Returns (path -> array, counts) of the newest checkpoint, read without knowing the structure."""
    with ocp.CheckpointManager(Path(run_dir) / "checkpoints") as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), counts=ocp.args.JsonRestore())
        found = manager.restore(manager.latest_step(), args=items)
        assert manager.latest_step() == found["counts"]["totals"]["steps"]
    return found["state"], found["counts"]


BAD_SAMPLE = 1000.0
"""One input of this size makes the models below go wrong; what is given to `fit` itself must be finite."""


def nan_at_the_bad_sample(params, x):
    return jnp.where(jnp.max(x) == BAD_SAMPLE, jnp.nan, 0.0)


def nan_gradient_at_the_bad_sample(params, x):
    return jnp.sqrt(jnp.where(jnp.max(x) == BAD_SAMPLE, 0 * jnp.sum(params["b"]), 1.0))


@pytest.mark.parametrize(("extra", "tensor"), [
    (nan_at_the_bad_sample, "activations of the cut"), (nan_gradient_at_the_bad_sample, "client's gradients"),
])  # fmt: skip
def test_numbers_that_are_not_finite_end_a_run_after_a_checkpoint(tmp_path, extra, tensor):
    dataset = own_dataset()
    dataset.x_train[29, 2] = BAD_SAMPLE
    whole, *halves = own_model()
    model = whole._replace(client_apply=lambda params, x: whole.client_apply(params, x) + extra(params, x))
    config = own_config(tmp_path / "run")
    with pytest.raises(InputError) as caught:
        loop.fit(config, dataset, model, *halves)
    assert f"not finite: {tensor}. The last good state, after step" in str(caught.value)
    state, counts = newest(tmp_path / "run")
    last_good = counts["totals"]["steps"]
    assert str(caught.value).startswith(f"step {last_good + 1}: ")
    assert int(state[".step"]) == last_good == len(lines(tmp_path / "run", "train"))
    assert bool(state[".is_sound"])
    assert all(np.all(np.isfinite(np.asarray(leaf, np.float64))) for leaf in state.values())
    assert not (tmp_path / "run" / "summary.json").exists()
    # It can be resumed, and then fails at the same step: the data have not changed.
    resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    with pytest.raises(InputError) as again:
        loop.fit(resumed, dataset, model, *halves)
    assert str(again.value) == str(caught.value)
    # With the number put right it goes on to the end.
    dataset.x_train[29, 2] = 0
    assert loop.fit(resumed, dataset, model, *halves).summary["steps"] == NUM_STEPS


def _wrong(field, change):
    dataset = own_dataset()
    return dataset._replace(**{field: change(np.array(getattr(dataset, field)))})


def _with_nan(x):
    x[5, 1] = np.nan
    return x


@pytest.mark.parametrize(("dataset", "message"), [
    (_wrong("x_train", _with_nan), "sample 5 of x_train is 'not finite'; allowed: finite numbers."),
    (_wrong("x_test", _with_nan), "sample 5 of x_test is 'not finite'"),
    (_wrong("x_test", lambda x: x[:, :3]), "the shape of a sample of x_test is (3,); allowed: (4,)."),
    (_wrong("x_test", lambda x: x[:0]), "the number of samples in x_test is 0; allowed: at least 1."),
    (_wrong("y_train", lambda y: y - 1), "a label in y_train is -1; allowed: 0 to 2."),
    (_wrong("y_train", lambda y: y[:, None]), "the shape of y_train is"),
    (own_dataset()._replace(num_classes=4), "shape of the server's logits is (8, 3); allowed: (8, 4)"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, dataset, message):
    with pytest.raises(InputError) as caught:
        loop.fit(own_config(tmp_path / "run"), dataset, *own_model())
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


CUTS = [
    (lambda x: {"a": x}, "activations of the cut is {'a': 'float32[8, 4]'}; allowed: one array of floats [8, ...]"),
    (lambda x: (x > 0).astype(jnp.int32), "activations of the cut is 'int32[8, 4]'"),
    (lambda x: x + 1j, "activations of the cut is 'complex64[8, 4]'"),
    (lambda x: x[:, :0], "activations of the cut is 'float32[8, 0]'"),
    (lambda x: x.sum(), "activations of the cut is 'float32[]'"),
    (lambda x: x.T, "activations of the cut is 'float32[4, 8]'"),
]


@pytest.mark.parametrize(("client_apply", "message"), CUTS)
def test_a_cut_that_is_not_one_array_of_floats_is_refused(tmp_path, client_apply, message):
    model = split.SplitModel(lambda params, x: client_apply(x), lambda params, smashed: smashed)
    with pytest.raises(InputError) as caught:
        loop.fit(own_config(tmp_path / "run"), own_dataset(), model, ((), ()), ((), ()))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("client", [None, {"w": 1, "b": 2, "c": 3}, jnp.ones((4, 6))])
def test_a_half_without_its_state_is_refused(tmp_path, client):
    model, _, server = own_model()
    with pytest.raises(InputError, match=r"client is .*; allowed: \(params, running state\); the state is \(\) if it"):
        loop.fit(own_config(tmp_path / "run"), own_dataset(), model, client, server)


def test_parameters_may_be_numbers_of_python(tmp_path):
    model = split.SplitModel(lambda params, x: params["scale"] * x, lambda params, smashed: smashed @ params)
    client, server = ({"scale": 0.5}, ()), (np.ones((4, 3), np.float32), ())
    assert loop.fit(own_config(tmp_path / "run"), own_dataset(), model, client, server).exit_code == 0


def test_the_run_folder_names_data_and_model_of_your_own(tmp_path):
    loop.fit(own_config(tmp_path / "run", steps=2), own_dataset()._replace(name="mine"), *own_model())
    written = configs.from_toml(tmp_path / "run" / "config.toml")
    assert (written.data.name, written.model.name, written.model.cut) == ("mine", "own", "own")
    assert "mine · own ·" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("found", [[], {"totals": {"steps": 9999}, "last_eval": {}, "views": {}}, {"totals": {}}])
def test_a_checkpoint_that_counts_something_else_is_refused(tmp_path, found):
    config = own_config(tmp_path / "run", steps=4, checkpoint_every=4)
    loop.fit(config, own_dataset(), *own_model())
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "checkpoints" / "4" / "counts" / "metadata").write_text(json.dumps(found))
    resumed = dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))
    with pytest.raises(InputError, match=r"one that this run wrote after 4 steps.*Remove it"):
        loop.fit(resumed, own_dataset(), *own_model())


@pytest.mark.parametrize("learning_rate", ["1e10", "1e30"])
def test_a_learning_rate_that_explodes_ends_a_run_after_a_checkpoint(folder, capfd, learning_rate):
    name = f"explodes-{learning_rate}"
    words = ("--train.learning_rate", learning_rate, "--train.warmup", "0", "--train.checkpoint_every", "100")
    assert run(folder, name, *words) == 2
    printed = capfd.readouterr().err.splitlines()[-1]
    state, counts = newest(folder / name)
    assert printed.startswith(f"error: step {counts['totals']['steps'] + 1}: ")
    assert "A lower train.learning_rate or a longer train.warmup is the usual cure" in printed
    assert int(state[".step"]) == counts["totals"]["steps"]
    assert all(np.all(np.isfinite(np.asarray(leaf, np.float64))) for leaf in state.values())
    assert not (folder / name / "summary.json").exists()


# ---- the order of things within the loop ----


class Log:
    """Stands in for the journal: writes down when the metrics of a step are asked for."""

    def __init__(self, events):
        self.totals, self.events = journal.Totals(), events

    def step(self, metrics):
        self.totals.steps += 1
        self.events.append(f"read {metrics}")

    def evaluated(self, scores):
        self.events.append("evaluated")


class Signals:
    """Stands in for the signals: one is received from its `after`-th look on."""

    def __init__(self, after=10**6):
        self.looks, self.after = 0, after

    @property
    def received(self):
        self.looks += 1
        return signal.SIGTERM if self.looks > self.after else 0


def events_of(calendar, signals):
    """Returns the events of a run, and (step of the state, steps counted) of every checkpoint."""
    events, saved = [], []
    log = Log(events)

    def advance(state, step):
        events.append(f"send {step + 1}")
        return state + 1, step + 1

    def save(state):
        events.append("save")
        saved.append((state, log.totals.steps))

    loop.train(0, advance, lambda state: events.append(f"score {state}"), save, calendar, log, signals)
    return events, saved


def test_the_host_reads_a_step_once_the_next_is_under_way():
    calendar = journal.Calendar(num_steps=4, steps_per_epoch=4, log_every=1, eval_every=0, checkpoint_every=0)
    events, _ = events_of(calendar, Signals())
    assert events == [
        "send 1", "send 2", "read 1", "send 3", "read 2", "send 4", "read 3", "read 4", "score 4", "evaluated", "save",
    ]  # fmt: skip


@pytest.mark.parametrize("after", range(1, 16))
def test_a_checkpoint_counts_the_steps_of_its_state_whenever_the_signal_comes(after):
    calendar = journal.Calendar(num_steps=4, steps_per_epoch=4, log_every=1, eval_every=3, checkpoint_every=2)
    events, saved = events_of(calendar, Signals(after))
    assert all(state == steps for state, steps in saved)
    assert events[-1] == "save"


@pytest.mark.parametrize("method", ["top_k", "splitfc", "fedlite", "aq_sgd"])
def test_peers_train(tmp_path, method):
    """Those that share a support, add a penalty or keep caches of samples."""
    direction = configs.DirectionConfig(method=method)
    config = own_config(tmp_path / "run", steps=6)
    config = dataclasses.replace(config, compress=configs.CompressConfig(direction, direction))
    fitted = loop.fit(config, own_dataset(), *own_model())
    assert fitted.exit_code == 0
    assert all(line["up_skipped"] == line["down_skipped"] == 0 for line in lines(tmp_path / "run", "train"))
    assert all(line["up_rank"] >= 1 for line in lines(tmp_path / "run", "train"))
