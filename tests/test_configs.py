import re
from pathlib import Path

import pytest

from tests.train import runs
from train import config, main

CONFIGS = sorted((runs.ROOT / "configs").glob("*.toml"))
SHAPES = {"digits": (8, 1), "fashion_mnist": (28, 1), "cifar10": (32, 3)}  # height and channels


@pytest.fixture(autouse=True, scope="module")
def strict_promotion():
    """Stands in for that of the suite: Flax promotes implicitly."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with made data in the shape of each data set."""
    folder = tmp_path_factory.mktemp("configs")
    for name, (height, channels) in SHAPES.items():
        runs.write_npz(folder / f"{name}.npz", runs.made_dataset(height, channels, 16, 10, num_classes=10))
    with runs.quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        yield folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_what_it_is_where_from_how_to_run_it_and_what_to_expect(path):
    comment = re.match(r"(#.*\n)+", path.read_text()).group()
    assert re.findall(r"^# (\w+):", comment, re.MULTILINE) == ["Source", "Command", "Expected"]
    assert not comment.startswith("# Source")
    command = re.search(r"^# Command: (.*)", comment, re.MULTILINE).group(1)
    assert command == "make demo" or command.startswith(f"python train/main.py --config configs/{path.name}")


def test_the_readme_lists_every_config():
    listed = re.findall(r"^\| `(\w+)` \|", (runs.ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs(folder, path):
    settings = config.load(["--config", str(path)]).config
    assert settings.train.steps is None  # they say how many epochs
    made = ("--data.name", "npz", "--data.dir", str(folder / f"{settings.data.name}.npz"))
    fewer = ("--data.num_train", "16", "--data.num_test", "10", "--train.batch_size", "8", "--train.steps", "2")
    # Of a vector no frame would be small enough.
    smaller = ("--model.width", "4") if settings.model.cut.startswith("stage") else ()
    run_dir = folder / path.stem
    words = ("--config", str(path), "--run_dir", str(run_dir), "--train.log_every", "1")
    assert main.main([*words, *made, *fewer, *smaller]) == 0
    summary, lines = runs.summary(run_dir), runs.lines(run_dir, "train")
    assert [line["step"] for line in lines] == [1, 2]
    assert summary["ratio"] >= min(settings.compress.up.ratio, settings.compress.down.ratio)
    for line in lines:
        assert line["up_bytes"] <= line["up_budget_bytes"]
        assert line["down_bytes"] <= line["down_budget_bytes"]
    assert (run_dir / "report.html").exists()
    assert Path(run_dir, "halves", "client").is_dir()
