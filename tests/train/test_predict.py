import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax.check import InputError
from tests.train import runs
from train import checkpoint, loop, predict
from train.config import CompressConfig, Config, DirectionConfig, ModelConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

DATA, OWN_DATA = runs.made_dataset(), runs.own_dataset()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run folder, what the run returned) of a network with running statistics, one component a message."""
    coarse = DirectionConfig(max_rank=1, view="B,D")
    config = Config(
        run_dir=str(tmp_path_factory.mktemp("predict") / "run"),
        model=ModelConfig(name="mlp", width=16, cut="hidden2"),
        compress=CompressConfig(up=coarse, down=coarse),
        train=TrainConfig(epochs=3, batch_size=8, learning_rate=0.05),
    )
    return Path(config.run_dir), loop.fit(config, DATA)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    config = runs.own_config(tmp_path_factory.mktemp("predict") / "own")
    return Path(config.run_dir), loop.fit(config, OWN_DATA, *runs.own_model())


def test_both_halves_together_reproduce_the_accuracy_left_alone(finished):
    run_dir, fitted = finished
    client, server = predict.client(run_dir), predict.server(str(run_dir))
    smashed = client(DATA.x_test)
    assert smashed.shape == (len(DATA.x_test), 16)
    is_right = np.argmax(server(smashed), axis=-1) == DATA.y_test
    assert is_right.mean() == pytest.approx(fitted.summary["accuracy_uncompressed"])
    assert is_right.mean() > 0.5
    assert fitted.summary["accuracy"] != fitted.summary["accuracy_uncompressed"]


def test_a_sample_is_judged_alone(finished):
    run_dir, _ = finished
    client, server = predict.client(run_dir), predict.server(run_dir)
    whole = server(client(DATA.x_test))
    np.testing.assert_allclose(server(client(DATA.x_test[3:4]))[0], whole[3], rtol=1e-4, atol=1e-5)


def test_one_half_needs_nothing_of_the_other(finished, tmp_path):
    run_dir, _ = finished
    (tmp_path / "halves").mkdir()
    (run_dir / "halves" / "client").rename(tmp_path / "halves" / "client")
    try:
        assert predict.client(tmp_path)(DATA.x_test[:2]).shape == (2, 16)
        assert predict.server(run_dir)(jnp.ones((2, 16))).shape == (2, 3)
        with pytest.raises(InputError, match=r"folder of a trained half is '.*halves/client'"):
            predict.client(run_dir)
    finally:
        (tmp_path / "halves" / "client").rename(run_dir / "halves" / "client")


def test_ones_own_model_predicts_by_its_own_functions(own):
    run_dir, fitted = own
    model = runs.own_model()[0]
    client, server = predict.client(run_dir, model=model), predict.server(run_dir, model=model)
    is_right = np.argmax(server(client(OWN_DATA.x_test)), axis=-1) == OWN_DATA.y_test
    assert is_right.mean() == pytest.approx(fitted.summary["accuracy_uncompressed"])


class Dense(NamedTuple):
    kernel: Any
    scales: tuple


def test_ones_own_structures_come_back(tmp_path):
    half = (Dense(np.ones((4, 6), np.float32), (np.zeros(2), np.ones(3))), ())
    checkpoint.save_half(tmp_path / "half", half, {"shape": [4]})
    like = (Dense(0, (0, 0)), ())
    found, about = checkpoint.load_half(tmp_path / "half", like)
    assert jax.tree.structure(found) == jax.tree.structure(half)
    assert runs.same_leaves(found, half)
    assert about == {"shape": [4]}
    (params, state), _ = checkpoint.load_half(tmp_path / "half")
    assert (sorted(params), len(params["scales"]), state) == (["kernel", "scales"], 2, {})
    with pytest.raises(InputError, match=r"half in .* allowed: \['0/kernel'\]\. It was saved from another model"):
        checkpoint.load_half(tmp_path / "half", ({"kernel": 0}, ()))


def test_a_half_may_be_one_array(tmp_path):
    checkpoint.save_half(tmp_path / "half", (np.arange(3), np.ones(2)), {})
    (params, state), _ = checkpoint.load_half(tmp_path / "half")
    np.testing.assert_array_equal(params, np.arange(3))
    np.testing.assert_array_equal(state, np.ones(2))


@pytest.mark.parametrize("half", [predict.client, predict.server])
def test_ones_own_model_must_be_given(own, half):
    with pytest.raises(InputError, match=r"model is None; allowed: the SplitModel of the run\. This run was made with"):
        half(own[0])


@pytest.mark.parametrize(("x", "message"), [
    (DATA.x_test[:, :4], r"shape of a sample is \(4, 8, 1\); allowed: \(8, 8, 1\), as in training"),
    (DATA.x_test[..., 0], r"shape of a sample is \(8, 8\); allowed: \(8, 8, 1\)"),
    (DATA.x_test / np.float32(255), "type of the images is 'float32'; allowed: uint8"),
])  # fmt: skip
def test_inputs_unlike_those_of_training_are_refused(finished, x, message):
    with pytest.raises(InputError, match=message):
        predict.client(finished[0])(x)


def test_ones_own_inputs_are_taken_as_they_are(own):
    client = predict.client(own[0], model=runs.own_model()[0])
    assert client(OWN_DATA.x_test.astype(np.int32)).shape == (len(OWN_DATA.x_test), 6)
    with pytest.raises(InputError, match=r"shape of a sample is \(3,\); allowed: \(4,\)"):
        client(OWN_DATA.x_test[:, :3])


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", DATA.x_test)
    return str(tmp_path / "images.npy")


def test_the_command_prints_a_class_a_line(finished, images):
    run_dir, _ = finished
    words = [sys.executable, "-m", "train.predict", str(run_dir), images]
    environment = runs.child_environment()
    done = subprocess.run(words, cwd=runs.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    expected = np.argmax(predict.server(run_dir)(predict.client(run_dir)(DATA.x_test)), axis=-1)
    assert done.stdout.split() == [str(label) for label in expected]


def test_images_that_were_not_scaled_are_told(finished, tmp_path, capsys):
    np.save(tmp_path / "dark.npy", DATA.x_test // 16)  # the mean in training is 0.3
    assert predict.main([str(finished[0]), str(tmp_path / "dark.npy")]) == 0
    assert capsys.readouterr().err.startswith("warning: the largest value of the first images is 15, the mean in")


def test_the_command_works_through_many_images(finished, images, monkeypatch, capsys):
    assert predict.main([str(finished[0]), images]) == 0
    at_once = capsys.readouterr().out
    monkeypatch.setattr(predict, "BATCH_SIZE", 7)
    assert predict.main([str(finished[0]), images]) == 0
    assert capsys.readouterr().out == at_once
    assert at_once.count("\n") == len(DATA.x_test)


def test_what_the_command_cannot_use_is_one_line(finished, own, images, tmp_path, capsys):
    run_dir = str(finished[0])
    np.save(tmp_path / "floats.npy", DATA.x_test.astype(np.float32))
    np.save(tmp_path / "small.npy", DATA.x_test[:, :4])
    (tmp_path / "text.npy").write_text("no array")
    cases = [
        ([], "command line is ''; allowed: RUN_DIR IMAGES.npy"),
        ([run_dir], "allowed: RUN_DIR IMAGES.npy"),
        ([str(tmp_path), images], "folder of a trained half"),
        ([run_dir, str(tmp_path / "absent.npy")], "absent.npy"),
        ([run_dir, str(tmp_path / "text.npy")], "text.npy"),
        ([run_dir, str(tmp_path / "floats.npy")], "allowed: uint8 [N, H, W, C]"),
        ([run_dir, str(tmp_path / "small.npy")], "shape of a sample is (4, 8, 1)"),
        ([str(own[0]), images], "model of your own"),
    ]
    for words, message in cases:
        assert predict.main(words) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert message in printed.err


def test_a_half_says_how_it_was_made(finished):
    run_dir, _ = finished
    about = json.loads((run_dir / "halves" / "client" / "about" / "metadata").read_text())
    architecture = {"name": "mlp", "width": 16, "cut": "hidden2", "norm": "batch", "bottleneck": None,
                    "second_cut": None, "num_classes": 3, "dtype": "float32"}  # fmt: skip
    assert about["architecture"] == architecture
    assert about["shape"] == [8, 8, 1]
    assert np.float32(about["mean"]) == DATA.mean
    assert dataclasses.asdict(Config())["model"].keys() <= about["architecture"].keys()
