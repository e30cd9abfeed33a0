import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from nscjax.check import InputError
from train import config, main

ROOT = Path(main.__file__).parents[1]
DOORS = (["train/main.py"], ["-m", "train.main"])


def run(*words, door=DOORS[0], cwd=ROOT):
    return subprocess.run([sys.executable, *door, *words], cwd=cwd, capture_output=True, text=True, check=False)


class Loop:
    """Stands in for the training loop: keeps what it is given, returns or raises what it was made with."""

    def __init__(self, result):
        self.result = result

    def run(self, *arguments):
        self.arguments = arguments
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text("seed = 4\n")
    return path


@pytest.mark.parametrize("door", DOORS)
def test_print_config_through_both_doors(door, file):
    done = run("--config", str(file), "--train.epochs=2", "--print_config", door=door)
    assert (done.returncode, done.stderr) == (0, "")
    expected = config.load(["--config", str(file), "--train.epochs=2"]).config
    assert config.from_toml(done.stdout) == expected


@pytest.mark.parametrize("door", DOORS)
def test_bad_input_is_one_message_and_exit_code_2(door):
    done = run("--config", "absent.toml", door=door)
    assert (done.returncode, done.stdout) == (2, "")
    expected = "error: config file is 'absent.toml'; allowed: a TOML file (No such file or directory)."
    assert done.stderr.rstrip() == expected


def test_the_script_runs_from_any_folder(file, tmp_path):
    door = [os.path.relpath(ROOT / "train" / "main.py", tmp_path)]
    done = run("--config", file.name, "--print_config", door=door, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'run_dir = "runs/small"' in done.stdout


def test_the_script_leaves_no_room_of_train_at_the_top(tmp_path):
    code = (
        "import runpy, sys; sys.path[0] = 'train'; sys.argv = ['train/main.py', '--help']\n"
        "try: runpy.run_path('train/main.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "import importlib.util\n"
        "print(importlib.util.find_spec('config'), sys.modules['train.config'].__file__)"
    )
    done = run("-c", code, door=[])
    assert done.stdout.splitlines()[-1] == f"None {ROOT / 'train' / 'config.py'}"


def test_help_and_errors_come_before_jax():
    code = (
        "import sys; from train import main; code = main.main(['--config', 'absent.toml'])\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as done: print(code, done.code, 'jax' in sys.modules)"
    )
    done = run("-c", code, door=[])
    assert done.stdout.splitlines()[-1] == "2 0 False"


def test_the_run_gets_the_config_and_gives_the_exit_code(file, monkeypatch):
    loop = Loop(130)
    monkeypatch.setattr(train, "loop", loop, raising=False)
    assert main.main(["--config", str(file)]) == 130
    assert loop.arguments == (config.Config(seed=4, run_dir="runs/small"), frozenset({"seed"}))


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (InputError("first line\n  second line"), "first line second line"),
        (FileNotFoundError(2, "No such file or directory", "lte.csv"), "lte.csv: No such file or directory"),
        (PermissionError(13, "Permission denied", "runs"), "runs: Permission denied"),
        (OSError("disk is gone"), "disk is gone"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "'utf-8' codec can't decode byte 0xff",
        ),
    ],
)
def test_what_fails_outside_of_the_run_is_one_line(file, monkeypatch, capsys, raised, message):
    monkeypatch.setattr(train, "loop", Loop(raised), raising=False)
    assert main.main(["--config", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1


def test_an_interrupt_before_the_first_step_is_no_mistake(file, monkeypatch, capsys):
    monkeypatch.setattr(train, "loop", Loop(KeyboardInterrupt()), raising=False)
    assert main.main(["--config", str(file)]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_mistake_of_our_own_is_not_hidden(file, monkeypatch):
    monkeypatch.setattr(train, "loop", Loop(ZeroDivisionError("ours")), raising=False)
    with pytest.raises(ZeroDivisionError):
        main.main(["--config", str(file)])


def test_sigterm_before_the_first_step_ends_the_program_with_143(tmp_path):
    os.mkfifo(tmp_path / "config.toml")
    process = subprocess.Popen([sys.executable, "train/main.py", "--config", tmp_path / "config.toml"], cwd=ROOT)
    with (tmp_path / "config.toml").open("w"):  # opens as soon as the program reads it
        process.terminate()
        assert process.wait(timeout=60) == 143
