import dataclasses
import json

import pytest

from nscjax.check import InputError
from tests.train.runs import snapshot
from train import config as configs
from train import run_folder
from train.config import Config, DataConfig, TrainConfig


@pytest.fixture
def config(tmp_path):
    return Config(run_dir=str(tmp_path / "run"), train=TrainConfig(steps=3))


def resumed(config, **changes):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True, **changes))


def fill(folder):
    """Writes what a run writes, and a file and a folder of somebody else."""
    for name in ("metrics.jsonl", "summary.json", "report.html", "mine.txt"):
        (folder / name).write_text(name)
    for name in ("checkpoints", "halves", "plots", "mine"):
        (folder / name / "inner").mkdir(parents=True)
        (folder / name / "inner" / "file").write_text(name)


def test_a_new_folder_is_made_and_holds_the_config(config):
    config = dataclasses.replace(config, run_dir=f"{config.run_dir}/deep/down")
    run_folder.require_free(config)
    folder = run_folder.claim(config)
    assert [path.name for path in folder.iterdir()] == ["config.toml"]
    assert configs.from_toml(folder / "config.toml") == config


def test_a_folder_with_other_things_is_free_and_keeps_them(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    folder = run_folder.claim(config)
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "mine.txt"]


def test_another_run_is_refused_and_left_alone(config):
    folder = run_folder.claim(config)
    fill(folder)
    before = snapshot(folder)
    for refuse in (run_folder.require_free, run_folder.claim):
        with pytest.raises(
            InputError, match=r"run_dir is '.*run'; allowed: a folder without a run\. .*--overwrite true"
        ):
            refuse(config)
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", [name for name in run_folder.OWN_NAMES if name != "config.toml"])
@pytest.mark.parametrize("resume", [False, True])
def test_files_that_a_run_would_replace_are_not_taken_for_nothing(config, tmp_path, name, resume):
    # Somebody's own `plots`, or a run without its config: what no run is known to have written is never removed.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).mkdir()
    config = resumed(config) if resume else config
    with pytest.raises(InputError, match=rf"run_dir .* holds .*{name}"):
        run_folder.claim(config)
    assert (tmp_path / "run" / name).exists()
    assert not run_folder.can_resume(config)
    with pytest.raises(InputError, match=r"or one whose config\.toml a run wrote"):
        run_folder.claim(dataclasses.replace(config, overwrite=True))
    assert (tmp_path / "run" / name).exists()


def test_overwriting_replaces_what_a_run_writes_and_nothing_else(config):
    folder = run_folder.claim(config)
    fill(folder)
    run_folder.claim(dataclasses.replace(config, overwrite=True, seed=7))
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "mine", "mine.txt"]
    assert (folder / "mine" / "inner" / "file").read_text() == "mine"
    assert configs.from_toml(folder / "config.toml").seed == 7


def test_a_removal_that_is_cut_short_leaves_the_config_to_the_last(config, monkeypatch):
    folder = run_folder.claim(config)
    fill(folder)

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_folder.claim(dataclasses.replace(config, overwrite=True))
    assert (folder / "config.toml").exists()


def test_resuming_leaves_the_folder_as_it_is(config):
    folder = run_folder.claim(config)
    fill(folder)
    before = snapshot(folder)
    assert run_folder.can_resume(resumed(config))
    assert run_folder.claim(resumed(config)) == folder
    assert snapshot(folder) == before


def test_resuming_wins_over_overwriting(config):
    folder = run_folder.claim(config)
    fill(folder)
    before = snapshot(folder)
    run_folder.claim(dataclasses.replace(resumed(config), overwrite=True))
    assert snapshot(folder) == before


def test_resuming_where_nothing_is_begins_anew(config):
    assert not run_folder.can_resume(resumed(config))
    folder = run_folder.claim(resumed(config))
    assert configs.from_toml(folder / "config.toml") == config


def test_resuming_another_config_names_the_keys_that_differ(config):
    folder = run_folder.claim(config)
    fill(folder)
    before = snapshot(folder)
    other = dataclasses.replace(resumed(config, batch_size=3), seed=5)
    pattern = r"train\.resume is True; .*config\.toml\. These differ: seed, train\.batch_size\. Set them"
    with pytest.raises(InputError, match=pattern):
        run_folder.require_free(other)
    assert snapshot(folder) == before


def test_resuming_a_run_whose_config_is_broken_names_the_file(config):
    folder = run_folder.claim(config)
    (folder / "config.toml").write_text("seed = ")
    with pytest.raises(InputError, match=r"config\.toml is not valid TOML"):
        run_folder.require_free(resumed(config))


def test_a_file_is_no_run_folder(config, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match=r"run_dir is '.*run'; allowed: a folder, or a path where one can be made\."):
        run_folder.claim(config)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_folder_has_a_name(config, tmp_path, monkeypatch):
    # The default of a config made in Python; as a path it would be the working folder.
    monkeypatch.chdir(tmp_path)
    for given in ("", "a\0b"):
        with pytest.raises(InputError, match=r"run_dir is '.*'; allowed: the path of a folder"):
            run_folder.claim(dataclasses.replace(config, run_dir=given))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_finished_once_summary_and_report_are_there(config):
    folder = run_folder.claim(config)
    assert not run_folder.is_finished(config)
    (folder / "summary.json").write_text("{}")
    assert not run_folder.is_finished(config)
    (folder / "report.html").write_text("")
    assert run_folder.is_finished(config)


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    run_folder.write_whole(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    with pytest.raises(UnicodeEncodeError):
        run_folder.write_whole(path, "later" * 100_000 + "\ud800")
    assert path.read_bytes() == "ä\n".encode()


def test_lines_of_metrics_can_be_read_at_once(tmp_path):
    file = run_folder.MetricsFile(tmp_path / "metrics.jsonl")
    file.write({"step": 1})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1}
    assert file.num_bytes() == len('{"step": 1}\n')
    file.close()


def test_metrics_are_cut_back_to_where_a_checkpoint_left_them(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = run_folder.MetricsFile(path)
    file.write({"step": 1})
    kept = file.num_bytes()
    file.write({"step": 2})
    file.close()
    path.write_bytes(path.read_bytes() + b'{"step": 3, "cut')
    file = run_folder.MetricsFile(path, kept)
    file.write({"step": 4})
    file.close()
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_metrics_that_got_lost_are_not_made_up(tmp_path):
    file = run_folder.MetricsFile(tmp_path / "metrics.jsonl", 1000)
    file.write({"step": 4})
    file.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 4}\n'


def test_a_new_run_begins_with_empty_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("old")
    run_folder.MetricsFile(tmp_path / "metrics.jsonl").close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_overwrite_takes_no_other_programs_files(config, tmp_path):
    folder = tmp_path / "run"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "thesis.pdf").write_text("mine")
    for content in (None, "[tool]\nmine = true\n", "", "seed = 3\n"):
        if content is not None:
            (folder / "config.toml").write_text(content)
        before = snapshot(folder)
        with pytest.raises(InputError, match=r"or one whose config\.toml a run wrote"):
            run_folder.claim(dataclasses.replace(config, overwrite=True))
        assert snapshot(folder) == before


def test_a_number_that_json_has_not_is_no_line(tmp_path):
    file = run_folder.MetricsFile(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        file.write({"loss": float("nan")})
    assert file.num_bytes() == 0
    file.close()


def test_a_config_that_cannot_be_written_costs_no_earlier_run(config):
    folder = run_folder.claim(config)
    fill(folder)
    before = snapshot(folder)
    broken = dataclasses.replace(config, overwrite=True, data=DataConfig(name="npz", dir="dat\udce4"))
    with pytest.raises(UnicodeEncodeError):
        run_folder.claim(broken)
    assert snapshot(folder) == before


def test_a_runs_config_does_not_say_how_it_was_made(config):
    made = dataclasses.replace(resumed(config), overwrite=True, data=DataConfig(download=True))
    assert configs.from_toml(run_folder.claim(made) / "config.toml") == config
