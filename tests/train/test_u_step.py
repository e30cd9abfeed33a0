"""Runs of a U-shaped network: the client has the first layers and the last, and both cuts are compressed."""

import json
import signal

import jax
import numpy as np
import pytest

from nscjax import link as links
from nscjax.check import InputError
from tests.train import runs
from tests.train.runs import count_compilations, lines, made_folder
from train import checkpoint, journal, loop, main, predict, u_step
from train import config as configs

pytestmark = pytest.mark.usefixtures("quick")

LEFT_ALONE = [
    word for way in ("up", "down", "second_up", "second_down") for word in (f"--compress.{way}.method", "identity")
]
SECOND = ("second_up", "second_down")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_folder(tmp_path_factory.mktemp("u"))


def argv(folder, name, *more):
    return ["--config", str(folder / "small.toml"), "--run_dir", str(folder / name), *more]


def run(folder, name, *more):
    link = ("--link.trace", str(folder / "trace.csv"), "--link.deadline_s", "0.1", "--data.augment", "true")
    feedback = ("--compress.up.feedback", "across_steps", "--compress.second_up.feedback", "per_sample")
    return main.main(argv(folder, name, "--model.second_cut", "hidden2", *link, *feedback, *more))


@pytest.fixture(scope="module")
def unbroken(folder):
    with count_compilations() as compilations:
        assert run(folder, "unbroken") == 0
    return folder / "unbroken", compilations


def test_left_alone_it_is_the_run_of_one_cut(folder):
    assert main.main(argv(folder, "one_cut", *LEFT_ALONE)) == 0
    assert main.main(argv(folder, "two_cuts", *LEFT_ALONE, "--model.second_cut", "hidden2")) == 0
    wholes = []
    for name in ("one_cut", "two_cuts"):
        halves = [checkpoint.load_half(folder / name / "halves" / half)[0][0] for half in ("client", "server")]
        wholes.append(halves[0] | halves[1])
        own = {"client": ["hidden1"], "server": ["head", "hidden2", "hidden3"]}
        if name == "two_cuts":
            own = {"client": ["head", "hidden1", "hidden3"], "server": ["hidden2"]}
        assert {half: sorted(params) for half, params in zip(own, halves)} == own
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *wholes)
    one, two = (json.loads((folder / name / "summary.json").read_text()) for name in ("one_cut", "two_cuts"))
    assert one["accuracy"] == two["accuracy"] == two["accuracy_uncompressed"]
    assert two["raw_up_bytes"] == 2 * one["raw_up_bytes"]  # two tensors of the same shape cross each way
    assert two["ratio"] == pytest.approx(one["ratio"], rel=0.01)


def test_no_message_is_over_its_budget_and_all_are_counted(unbroken):
    train = lines(unbroken[0], "train")
    assert len({line["up_bytes"] for line in train}) > 3  # the link changes
    for line in train:
        for way in ("up", "down"):
            assert 0 < line[f"second_{way}_bytes"] < line[f"{way}_bytes"]
            budgets = {"second": line[f"second_{way}_budget_bytes"]}
            budgets["first"] = line[f"{way}_budget_bytes"] - budgets["second"]
            sent = {"second": line[f"second_{way}_bytes"]}
            sent["first"] = line[f"{way}_bytes"] - sent["second"]
            ranks = {"first": line[f"{way}_rank"], "second": line[f"second_{way}_rank"]}
            # A skipped message is a header, which tells the other end so, however small the budget was.
            assert all(sent[cut] <= budgets[cut] or ranks[cut] == 0 for cut in ranks)
            assert line[f"second_{way}_distortion"] > 0
    assert 0 < train[-1]["down_skipped"] < len(train)
    found = lines(unbroken[0], "eval")[-1]
    for way in ("up", "down"):
        assert found[f"total_{way}_bytes"] == sum(line[f"{way}_bytes"] for line in train)
        assert found[f"eval_{way}_bytes"] > 0
    assert found["total_link_seconds"] == pytest.approx(sum(line["link_seconds"] for line in train), rel=1e-6)


def test_parties_compute_as_long_as_with_one_cut():
    """Two exchanges, each with half of a step's computing before either message."""
    whole = links.Link(links.lte_like(0), links.lte_like(1), client_step_s=0.3, server_step_s=0.1)
    estimator = links.quantile()
    start = links.init(whole, estimator)
    one, *_ = links.exchange(whole, estimator, start, 0, 0)
    half, *_ = links.exchange(u_step.half_computing(whole), estimator, start, 0, 0)
    two, *_ = links.exchange(u_step.half_computing(whole), estimator, half, 0, 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)


def test_each_function_is_compiled_once(unbroken):
    _, compilations = unbroken
    for name in ("send", "relay", "turn", "give_back", "receive", "halfway", "settle", "present", "grade"):
        assert compilations[name] == 1 + (name == "relay"), name  # the step's and the evaluation's


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(unbroken, folder, monkeypatch):
    take_in = journal.Journal.step

    def step_and_signal(self, metrics):
        take_in(self, metrics)
        if self.totals.steps == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "step", step_and_signal)
        assert run(folder, "stopped") == 130
    assert run(folder, "stopped", "--train.resume", "true") == 0
    assert runs.summary(unbroken[0]) == runs.summary(folder / "stopped")
    assert lines(unbroken[0]) == lines(folder / "stopped")


def test_its_halves_predict_what_was_found_with_the_cuts_left_alone(unbroken, folder, capsys):
    data = np.load(folder / "made.npz")
    np.save(folder / "images.npy", data["x_test"])
    capsys.readouterr()
    assert predict.main([str(unbroken[0]), str(folder / "images.npy")]) == 0
    classes = np.array(capsys.readouterr().out.split(), int)
    summary = runs.summary(unbroken[0])
    assert np.mean(classes == data["y_test"]) == pytest.approx(summary["accuracy_uncompressed"])


def test_a_network_of_one_cut_has_no_tail(folder):
    assert main.main(argv(folder, "tailless", "--train.steps", "1")) == 0
    with pytest.raises(InputError, match="second cut"):
        predict.tail(folder / "tailless")


def test_a_learning_rate_that_explodes_ends_a_run_after_a_checkpoint(folder, capfd):
    assert run(folder, "explodes", "--train.learning_rate", "1e20") == 2
    assert "not finite" in capfd.readouterr().err
    assert checkpoint.steps(folder / "explodes" / "checkpoints")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.second_cut", "hidden1"), "model.second_cut is 'hidden1'; allowed: 'hidden2', 'hidden3'"),
        (("--model.second_cut", "head"), "model.second_cut is 'head'; allowed: 'hidden2', 'hidden3'"),
        (("--model.cut", "hidden3", "--model.second_cut", "hidden3"), "none where the cut, 'hidden3', leaves"),
        (("--model.second_cut", "hidden2", "--compress.second_up.ratio", "500"), "compress.second_up: budget"),
    ],
)
def test_cuts_that_cannot_be_are_refused(folder, capfd, words, message):
    assert main.main(argv(folder, "refused", *words)) == 2
    assert message in capfd.readouterr().err
    assert not (folder / "refused").exists()


def test_keys_of_a_cut_that_is_not_there_are_named(folder, capfd):
    assert main.main(argv(folder, "idle", "--train.steps", "1", "--compress.second_up.ratio", "2")) == 0
    told = capfd.readouterr()
    assert "ignored, for there is no model.second_cut: compress.second_up.ratio" in told.out + told.err


def test_a_model_of_ones_own_may_be_u_shaped(tmp_path):
    model, (client, _), (server, _) = runs.own_model()
    middle = {"w": np.eye(6, dtype=np.float32)}
    whole = model._replace(
        client_apply=lambda params, x: model.client_apply(params["first"], x),
        server_apply=lambda params, smashed: smashed @ params["w"],
        tail_apply=lambda params, features: model.server_apply(params["last"], features),
    )
    halves = ({"first": client, "last": server}, ()), (middle, ())
    config = runs.own_config(tmp_path / "own")
    fitted = loop.fit(config, runs.own_dataset(), whole, *halves)
    assert fitted.summary["accuracy"] > 0.7
    assert {line["second_up_rank"] for line in lines(tmp_path / "own", "train")} <= set(range(1, 7))
    assert configs.from_toml(tmp_path / "own" / "config.toml").model.second_cut == "own"
