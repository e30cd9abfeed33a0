"""The run folder: claimed before anything is written, its files written whole, its metrics appended line by line."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from nscjax import check
from train import config as configs
from train.config import Config

OWN_NAMES = (
    "report.html", "plots", "summary.json", "closed", "halves", "checkpoints", "run.txt", "metrics.jsonl",
    "config.toml",
)  # fmt: skip
"""What a run writes; `overwrite` removes these and nothing else, the config last: what is left names its run."""


MARK = "# The config of the run in this folder, as it was resolved; written by the run.\n"
"""First line of a run's `config.toml`: `overwrite` replaces what is beside it, and nothing without it."""


def require_free(config: Config) -> None:
    """Raises an `InputError` unless the run folder is free for this run: no other run in it that is not to be replaced.

    Called before anything is read or written: bad input must cost neither time nor an earlier run.
    """
    folder = Path(config.run_dir)
    if not config.run_dir or "\0" in config.run_dir:
        raise check.error("run_dir", config.run_dir, "the path of a folder")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or (nearest != folder and not os.access(nearest, os.W_OK | os.X_OK)):
        why = f"{nearest} {'may not be written in' if nearest.is_dir() else 'is a file'}."
        raise check.error("run_dir", config.run_dir, "a folder, or a path where one can be made", why)
    found = [name for name in OWN_NAMES if (folder / name).exists()]
    if can_resume(config):
        _require_same_run(folder, config)
    elif found and config.overwrite:
        _require_own(folder)
    elif found:
        resume = "--train.resume true to go on with it, " if "config.toml" in found else ""
        raise check.error(
            "run_dir", config.run_dir, "a folder without a run",
            f"It holds an earlier run's {found[0]}: give {resume}--overwrite true to replace it, or another --run_dir.",
        )  # fmt: skip


def can_resume(config: Config) -> bool:
    """Returns whether the config asks to go on with a run and the run folder holds one."""
    return config.train.resume and (Path(config.run_dir) / "config.toml").exists()


def claim(config: Config) -> Path:
    """Returns the run folder, made ready: empty of any run, or holding the very run that is to be resumed."""
    require_free(config)
    folder = Path(config.run_dir)
    if can_resume(config):
        return folder
    # How a run is made is not what it is: a config that says `overwrite` would destroy its own run when used again.
    train = dataclasses.replace(config.train, resume=False)
    data = dataclasses.replace(config.data, download=False)
    text = MARK + configs.to_toml(dataclasses.replace(config, overwrite=False, train=train, data=data))
    folder.mkdir(parents=True, exist_ok=True)
    # Nothing of an earlier run goes before what takes its place can be written.
    partial = _write_partial(folder / "config.toml", text)
    for name in OWN_NAMES[:-1]:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    partial.replace(folder / "config.toml")
    return folder


def is_finished(config: Config) -> bool:
    """Returns whether the run folder holds a run that came to its end: the report is the last that is written."""
    return (Path(config.run_dir) / "report.html").exists() and (Path(config.run_dir) / "summary.json").exists()


def _require_own(folder: Path) -> None:
    """Raises an `InputError` unless a run wrote the folder, so that `overwrite` never takes another program's files."""
    path = folder / "config.toml"
    if not path.is_file() or not path.read_bytes().startswith(MARK.encode()):
        raise check.error(
            "run_dir", str(folder), "a folder without a run, or one whose config.toml a run wrote",
            "What is in it is not replaced: move it away, or give another --run_dir.",
        )  # fmt: skip


def _require_same_run(folder: Path, config: Config) -> None:
    earlier = configs.from_toml(folder / "config.toml")
    if configs.fingerprint(earlier) != configs.fingerprint(config):
        differing = configs.differing_keys(earlier, config)
        raise check.error(
            "train.resume", True, f"the config of {folder / 'config.toml'}",
            f"These differ: {', '.join(differing)}. Set them as they were, or give another --run_dir.",
        )  # fmt: skip


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that it is there whole or not at all."""
    _write_partial(path, text).replace(path)


def _write_partial(path: Path, text: str) -> Path:
    """Returns the file beside `path` that holds `text`, all of it on disk."""
    partial, content = path.with_name(path.name + ".partial"), text.encode()
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return partial


class MetricsFile:
    """`metrics.jsonl`, one JSON object a line, cut back to where a checkpoint left it."""

    def __init__(self, path: Path, num_bytes: int = 0) -> None:
        """Opens the file and drops all that was written after `num_bytes` bytes."""
        self._file = path.open("ab")
        self._file.truncate(min(num_bytes, self._file.tell()))

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line, at once visible to readers."""
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def num_bytes(self) -> int:
        """Returns the length of what was written, all of it on disk."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
