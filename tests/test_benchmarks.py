import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nscjax.check import InputError
from train import compression
from train import config as configs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_pages_quote_the_committed_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + "run `python benchmarks/tables.py`"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path):
    result = json.loads(path.read_text())
    assert set(result) == {"command", "commit", "date", "machine", "versions", "seeds", "rows"}
    assert result["command"].startswith(("python benchmarks/", "python train/main.py"))
    assert result["rows"]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark's module by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_only_methods_with_no_frame_so_small_are_refused_in_the_grid(benchmark):
    """What the program would refuse for another reason would be told as that."""
    shape = (16, 16, 32)
    refused = set()
    for name, overrides in benchmark("accuracy_vs_bytes").cells(shape).items():
        channels = overrides.get("model.bottleneck")
        spec = jax.ShapeDtypeStruct((128, *((8, 8, channels) if channels else shape)), "float32")
        for way in ("up", "down"):
            prefix = f"compress.{way}."
            own = {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}
            config = configs.DirectionConfig(**own)
            view = compression.choose_view(way, config, spec, compression.cap_bytes(config, spec))
            try:
                compression.build(way, config, view, spec, 1000, 1 << 30)
            except InputError:
                refused.add(name)
    coarse = {f"{method} {ratio}x" for method in ("power_quant", "uniform", "aq_sgd")
              for ratio in (32, 64, 128, 256, 512, 1024)}  # fmt: skip
    assert refused - coarse == {
        "c3_sl 256x",
        "c3_sl 512x",
        "c3_sl 1024x",
        "powersgd 512x",
        "powersgd 1024x",
        "sl_acc 1024x",
    }
    assert coarse <= refused


def test_settings_of_a_run_are_those_that_count(benchmark):
    settings_of = benchmark("runs").settings_of
    plain = settings_of("cifar10_bench", {"compress.up.method": "identity", "compress.down.method": "identity"})
    assert plain["compress.up.method"] == "identity"
    assert not {"compress.up.ratio", "compress.up.view", "compress.up.max_rank"} & set(plain)
    assert plain["train.epochs"] == 5
    own = settings_of("cifar10_bench", {"compress.up.ratio": 256, "train.epochs": 3})
    assert (own["compress.up.ratio"], own["compress.up.view"], own["train.epochs"]) == (256, "BC,hw", 3)


def test_a_table_keeps_the_cells_that_are_not_asked_for(benchmark, monkeypatch, tmp_path):
    runs, record = benchmark("runs"), benchmark("record")
    for module in (runs, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    for name, seed in (("gone", 0), ("a", 0), ("b", 2)):
        runs.put("table", "config", ["a", "b"], name, {"runs": [{"seed": seed}]})
    result = json.loads((tmp_path / "table.json").read_text())
    assert list(result["rows"]["cells"]) == ["a", "b", "gone"]
    assert result["seeds"] == [0, 2]


def test_runs_that_were_added_meanwhile_stay_but_those_of_other_settings(benchmark, monkeypatch, tmp_path):
    runs, record = benchmark("runs"), benchmark("record")
    for module in (runs, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    for seed in (1, 0):
        runs.put_run("table", "config", ["a"], "a", {"x": 1}, {"seed": seed, "accuracy": 0.5, "ratio": 1.0})
    assert [run["seed"] for run in runs.earlier("table")["a"]["runs"]] == [0, 1]
    runs.put_run("table", "config", ["a"], "a", {"x": 2}, {"seed": 2, "accuracy": 0.5, "ratio": 1.0})
    assert [run["seed"] for run in runs.earlier("table")["a"]["runs"]] == [2]


def test_results_alone_do_not_make_a_commit_dirty(benchmark, monkeypatch, tmp_path):
    record = benchmark("record")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(record, "RESULTS", results)
    assert record.commit() == "unknown"
    for path in (results / "a.json", tmp_path / "code.py"):
        path.write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = record.commit()
    (results / "a.json").write_text("2")
    assert record.commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert record.commit() == f"{clean}-dirty"


def test_a_run_that_fails_keeps_no_other_from_being_made(benchmark, monkeypatch, tmp_path):
    runs, record = benchmark("runs"), benchmark("record")
    for module in (runs, record):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def run(config, overrides, seed, *_):
        if overrides["train.epochs"] == 1:
            raise subprocess.CalledProcessError(1, "main.py")
        return {"seed": seed, "accuracy": 0.5, "ratio": 1.0}

    monkeypatch.setattr(runs, "run", run)
    cells = {name: {"train.epochs": epochs} for epochs, name in enumerate(("a", "b", "c"))}
    with pytest.raises(SystemExit, match="1 runs of table failed: b, seed 0"):
        runs.make("table", "cifar10_bench", cells, dict.fromkeys(cells, 1), data_dir=None, jobs=1, out=tmp_path)
    assert list(json.loads((tmp_path / "table.json").read_text())["rows"]["cells"]) == ["a", "c"]
