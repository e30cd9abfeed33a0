import re
import shlex

import jax
import numpy as np
import pytest

from nscjax import cut
from tests.train import runs
from train import main, predict, report

README = (runs.ROOT / "README.md").read_text()
MAKEFILE = (runs.ROOT / "Makefile").read_text()
# What makes the README's commands short: views that are not measured, made data, two steps, a small network.
VIEWS = ("--compress.up.view", "BC,HW", "--compress.down.view", "BC,HW")
SHORT = (
    *("--data.name", "npz", "--data.dir", "made.npz", "--data.num_train", "16", "--data.num_test", "10"),
    *("--train.batch_size", "8", "--train.steps", "2"),
    *("--model.name", "cnn", "--model.width", "4", "--model.cut", "conv2"),
    *VIEWS,
)


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


MAIN = "train/main.py"
COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture(autouse=True, scope="module")
def strict_promotion():
    """Stands in for that of the suite: Flax promotes implicitly."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder in which the README's commands find what they name."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(runs.ROOT / "configs")
    np.save(folder / "images.npy", np.zeros((3, 8, 8, 1), np.uint8))
    runs.write_npz(folder / "made.npz", runs.made_dataset(32, 3, 16, 10, num_classes=10))
    with runs.quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        yield folder


@pytest.fixture(autouse=True)
def working(folder, monkeypatch):
    monkeypatch.chdir(folder)


def recipe(target):
    """Returns the words of the only command of a target of the Makefile."""
    (command,) = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE).group(1).strip().splitlines()
    return shlex.split(command.replace("$(BIN)", ".venv/bin"))


def words_of(command):
    """Returns the command line of the program that a command of the README stands for, made short."""
    words = shlex.split(command)
    if words == ["make", "demo"]:
        words, more = recipe("demo"), ("--train.epochs", "1", *VIEWS)
    else:
        more = () if "--help" in words else SHORT
    assert words[:2] == [".venv/bin/python", "train/main.py"]
    return [*words[2:], *more]


def test_the_readme_has_the_commands_that_are_tested_here():
    assert [command for command in COMMANDS if command.startswith("make")] == ["make demo", "make test"]
    assert len(COMMANDS) > 5
    assert len(blocks("python")) == 4


@pytest.mark.parametrize("target", ["demo", "test", "lint", "certs", "bench", ".venv"])
def test_the_makefile_has_its_targets(target):
    assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)


# In the order of the README: a run is resumed that was made before.
@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith("make demo") or MAIN in command]
)
def test_a_command_runs(command, capsys):
    words = words_of(command)
    if "--help" in words:
        with pytest.raises(SystemExit) as done:
            main.main(words)
        assert done.value.code == 0
        assert "--compress.up.ratio" in capsys.readouterr().out
        return
    assert main.main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    if "--train.resume" in words:
        assert last.endswith("holds the finished run: nothing to do.")
    else:
        assert re.fullmatch(r"report: runs/\w+/report\.html", last)


@pytest.mark.parametrize("command", [command for command in COMMANDS if " -m train." in command])
def test_a_command_on_a_finished_run_works(command, capsys):
    program, _, module, *words = shlex.split(command)
    assert program == ".venv/bin/python"
    assert {"train.report": report.main, "train.predict": predict.main}[module](words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == (3 if module == "train.predict" else 1)


NAMES = {}  # the README's blocks share their names, from the first to the last


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_block_of_python_runs(number, folder):
    exec(compile(blocks("python")[number], f"README.md, block {number + 1} of python", "exec"), NAMES)
    if number == 0:
        assert len(NAMES["frame"]) <= 5_000
        assert NAMES["x_hat"].shape == NAMES["x"].shape
    elif number == 1:
        assert isinstance(NAMES["state"], cut.CutState)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((NAMES["loss"], NAMES["grads"])))
    elif number == 2:
        assert NAMES["fitted"].exit_code == 0
        assert NAMES["fitted"].summary["accuracy"] > 0.9
        assert (folder / "runs" / "mine" / "report.html").exists()
    else:
        assert NAMES["logits"].shape == (5, 10)
