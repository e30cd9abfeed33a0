"""Predictions over the link: what an evaluation of the same run says, and clear words where they cannot be."""

import json
import shutil
import threading

import numpy as np
import pytest

from nscjax import check
from nscjax.check import InputError
from nscjax.remote import Desk, certs
from tests.train.runs import free_address, made_folder
from train import client, inference, main, server
from train import config as configs
from train.terminal import Terminal

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two parties, and its test inputs as a file."""
    path = made_folder(tmp_path_factory.mktemp("inference"))
    certs.make(path / "certs", more=("ada",))
    address = free_address()
    serving = threading.Thread(target=server.run, args=(config_of(path, "server", address),))
    serving.start()
    client.run(config_of(path, "client", address))
    serving.join(60)
    with np.load(path / "made.npz") as file:
        np.save(path / "inputs.npy", file["x_test"])
    return path


def argv(folder, role, address, *more):
    words = ("--remote.address", address, "--remote.certs", str(folder / "certs"), "--remote.patience_s", "20")
    return ["--config", str(folder / "small.toml"), "--run_dir", str(folder / role), "--role", role, *words, *more]


def config_of(folder, role, address, *more):
    return configs.load(argv(folder, role, address, *more)).config


@pytest.fixture
def served(folder):
    """The address of a server of predictions for two clients."""
    address = free_address()
    config = config_of(folder, "server", address)
    door = server.open_door(config, Desk(inference.Predictor(config, Terminal(1, 0)).serve, 2))
    yield address
    door.close()


def asked(folder, address, *more):
    return main.main(argv(folder, "client", address, "--predict", str(folder / "inputs.npy"), *more))


def test_predictions_are_those_of_the_last_evaluation(folder, served, capsys):
    for _ in range(2):  # a conversation leaves nothing behind
        assert asked(folder, served) == 0
        classes = np.array(capsys.readouterr().out.split(), int)
        with np.load(folder / "made.npz") as file:
            right = np.mean(classes == file["y_test"])
        summary = json.loads((folder / "client" / "summary.json").read_text())
        assert right == pytest.approx(summary["accuracy"])


def test_of_a_u_shaped_network_the_client_finds_the_classes(folder, capsys):
    more, addresses = ("--model.second_cut", "hidden2", "--overwrite", "true"), [free_address(), free_address()]

    def words(role, address):
        return argv(folder, role, address, "--run_dir", str(folder / f"u-{role}"), *more)

    serving = threading.Thread(target=main.main, args=(words("server", addresses[0]),))
    serving.start()
    assert main.main(words("client", addresses[0])) == 0
    serving.join(60)
    config = configs.load(words("server", addresses[1])).config
    door = server.open_door(config, Desk(inference.Predictor(config, Terminal(1, 0)).serve, 2))
    capsys.readouterr()
    assert main.main([*words("client", addresses[1]), "--predict", str(folder / "inputs.npy")]) == 0
    door.close()
    classes = np.array(capsys.readouterr().out.split(), int)
    with np.load(folder / "made.npz") as file:
        right = np.mean(classes == file["y_test"])
    summary = json.loads((folder / "u-client" / "summary.json").read_text())
    assert right == pytest.approx(summary["accuracy"])


def test_every_client_is_known_by_its_certificate(folder, served, capsys):
    certs.make(folder / "certs", more=("grace",))
    assert asked(folder, served) == 0
    assert asked(folder, served, "--remote.certs", str(folder / "certs" / "ada")) == 0
    one, other = np.split(np.array(capsys.readouterr().out.split(), int), 2)
    np.testing.assert_array_equal(one, other)
    assert asked(folder, served, "--remote.certs", str(folder / "certs" / "grace")) == 2
    assert "2 client(s) are in session already" in capsys.readouterr().err


def test_a_local_command_predicts_with_both_halves(folder, capsys):
    """Halves that two parties have trained, brought together."""
    shutil.copytree(folder / "client", folder / "together", dirs_exist_ok=True)
    shutil.copytree(folder / "server" / "halves" / "server", folder / "together" / "halves" / "server")
    words = ["--config", str(folder / "small.toml"), "--run_dir", str(folder / "together")]
    assert main.main([*words, "--predict", str(folder / "inputs.npy")]) == 0
    assert len(capsys.readouterr().out.split()) == 20


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("--train.learning_rate", "0.5"), "the parties' configs differ: train.learning_rate"),
        (("--predict", "nowhere.npy"), "nowhere.npy"),
        (("--run_dir", "nowhere"), "finished run"),
    ],
)
def test_what_does_not_fit_is_told(folder, served, change, told, capsys):
    assert asked(folder, served, *change) == 2
    assert told in capsys.readouterr().err


def test_another_run_is_refused(folder, served, capsys):
    (folder / "client" / "run.txt").write_text((name := (folder / "client" / "run.txt").read_text())[::-1])
    assert asked(folder, served) == 2
    assert "holds another run" in capsys.readouterr().err
    (folder / "client" / "run.txt").write_text(name)


def test_inputs_of_another_shape_are_refused(folder, capsys):
    np.save(folder / "odd.npy", np.zeros((3, 5, 5, 1), np.uint8))
    assert asked(folder, "127.0.0.1:1", "--predict", str(folder / "odd.npy")) == 2
    assert "at least one sample of shape" in capsys.readouterr().err


def test_inputs_that_are_not_finite_are_refused_before_anyone_is_asked():
    x = np.zeros((5, 3), np.float32)
    inference.require_finite("inputs.npy", x, 2)
    x[3, 1] = np.nan
    with pytest.raises(InputError, match=r"inputs.npy is 'not finite, from sample 2 on'"):
        inference.require_finite("inputs.npy", x, 2)


def test_a_server_that_predicts_does_not_train(folder, served):
    shutil.rmtree(folder / "fresh", ignore_errors=True)
    config = config_of(folder, "client", served, "--run_dir", str(folder / "fresh"))
    with pytest.raises(check.InputError, match="the server is there for predictions"):
        client.run(config)


def test_a_server_without_a_finished_run_says_so(folder):
    config = config_of(folder, "server", free_address(), "--run_dir", str(folder / "nothing"))
    with pytest.raises(check.InputError, match="finished run"):
        inference.serve(config)
