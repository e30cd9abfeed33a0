"""The report of a run: a page with plots that anyone can open, made from the run folder's files alone.

`write` makes `report.html` and the plots it shows; `summary_table` is the table that ends a run on the
terminal; `python -m train.report RUN_DIR` makes the report again.
"""

import argparse
import json
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import rich.table

from nscjax import check
from train import plots
from train.plots import Metrics
from train.text import MISSING, byte_size, count, duration, is_number, percent, times

# The fields of metrics.jsonl and summary.json that the report reads as numbers.
_NUMBERS = (
    "step", "loss", "accuracy", "balanced_accuracy", "accuracy_uncompressed",
    "up_bytes", "up_rank", "up_distortion", "up_budget_bytes", "up_skipped", "total_up_bytes", "raw_up_bytes",
    "down_bytes", "down_rank", "down_distortion", "down_budget_bytes", "down_skipped", "total_down_bytes",
    "raw_down_bytes", "eval_up_bytes", "total_link_seconds", "ratio", "steps", "seed", "wall_seconds",
    "second_up_bytes", "second_up_rank", "second_up_distortion", "second_up_budget_bytes", "second_down_bytes",
    "second_down_rank", "second_down_distortion", "second_down_budget_bytes", "eval_down_bytes",
)  # fmt: skip
_HASHES = ("client_params_sha256", "server_params_sha256", "params_sha256")
_PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Run(NamedTuple):
    """What a run folder says about its run."""

    name: str  # of the folder
    config: str  # TOML, as it stands in the file
    settings: dict[str, Any]  # the same, parsed
    train: Metrics
    evals: Metrics
    facts: dict[str, Any]  # the summary's fields, as far as they are known, and the skipped messages
    is_finished: bool  # it has a summary


# ---- the run folder ----


def read(run_dir: Path) -> Run:
    """Returns what `config.toml`, `metrics.jsonl` and `summary.json` of a run folder say.

    A run that was cut short has no summary: its last evaluation takes that place.

    Raises:
        check.InputError: a file is missing or broken; names the file and, in the metrics, the line.
    """
    config_path = run_dir / "config.toml"
    if not config_path.is_file():
        raise check.error("the run folder", str(run_dir), "a folder with a config.toml", "Give the run_dir of a run.")
    try:
        config = config_path.read_text(encoding="utf-8")
        settings = tomllib.loads(config)
    except ValueError as problem:
        raise check.InputError(f"{config_path} is not TOML: {problem}. Start the run again.") from None
    train, evals = _read_metrics(run_dir / "metrics.jsonl")
    path = run_dir / "summary.json"
    summary = _read_object(path.read_bytes(), str(path), "Delete it.") if path.is_file() else None
    last = train[-1] if train else {}
    facts = {
        "steps": max((line["step"] for line in [*train, *evals]), default=None),
        "up_skipped": last.get("up_skipped"),
        "down_skipped": last.get("down_skipped"),
        **(evals[-1] if evals else {}),
        **(summary or {}),
    }
    return Run(run_dir.resolve().name, config, settings, train, evals, facts, is_finished=summary is not None)


def _read_metrics(path: Path) -> tuple[Metrics, Metrics]:
    """Returns the training lines and the evaluation lines; none of either where there is no file yet."""
    lines: dict[str, Metrics] = {"train": [], "eval": []}
    for number, text in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        where = f"{path} line {number}"
        line = _read_object(text, where, "Delete the line or start the run again.")
        check.one_of(f"{where}: kind", line.get("kind"), lines)
        if not is_number(line.get("step")):
            raise check.error(f"{where}: step", line.get("step"), "a number")
        lines[line["kind"]].append(line)
    return lines["train"], lines["eval"]


def _read_object(text: bytes, where: str, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in `text`, whose `_NUMBERS` are numbers, null or missing."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise check.error(where, text[:60].decode("utf-8", errors="replace"), "a JSON object", remedy)
    for name in _NUMBERS:
        if found.get(name) is not None and not is_number(found[name]):
            raise check.error(f"{where}: {name}", found[name], "a number or null", remedy)
    return found


# ---- the page and the table ----


def write(run_dir: Path) -> Path:
    """Writes `report.html` and `plots/` of a run folder from its own files, and returns the page's path.

    A run that was cut short, or has just begun, is reported from what there is. Equal folders give equal
    reports.

    Raises:
        check.InputError: a file of the folder is missing or broken; names it and, in the metrics, the line.
    """
    run = read(run_dir)
    shown = plots.describe(run.train, run.evals)
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    for plot in shown:
        plots.save(plot, folder)
    page = run_dir / "report.html"
    page.write_text(
        _PAGE.get_template("report.html").render(
            run=run,
            status=_status(run),
            plots=shown,
            tiles=_tiles(run.facts),
            traffic=_traffic(run.facts),
            facts=_facts(run.facts),
        ),
        encoding="utf-8",
    )
    return page


def _status(run: Run) -> str:
    """Returns what ran, on what, and how far it came, in one line."""

    def setting(*path: str) -> str:
        found: Any = run.settings
        for key in path:
            found = found.get(key, MISSING) if isinstance(found, dict) else MISSING
        return str(found)

    ways = ["up", "down"]
    if setting("model", "second_cut") != MISSING:
        ways += ["second_down", "second_up"]
    methods = ", ".join(f"{setting('compress', name, 'method')} {name.replace('_', ' ')}" for name in ways)
    steps = count(run.facts.get("steps"))
    end = f"finished after {steps} steps" if run.is_finished else f"not finished, last logged step {steps}"
    return f"{setting('data', 'name')} · {setting('model', 'name')} · {methods} · {end}"


def _sum(first: Any, second: Any) -> Any:
    return first + second if is_number(first) and is_number(second) else None


def _traffic(facts: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns rows (direction, sent, raw, ratio)."""
    rows = [(name, facts.get(f"total_{name}_bytes"), facts.get(f"raw_{name}_bytes")) for name in ("up", "down")]
    (_, up, raw_up), (_, down, raw_down) = rows
    rows.append(("both", _sum(up, down), _sum(raw_up, raw_down)))
    return [(name, byte_size(sent), byte_size(raw), times(raw, sent)) for name, sent, raw in rows]


def _tiles(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the figures that come first: (name, value, what to compare it with)."""
    (_, up, _, _), (_, down, _, _), (_, both, raw, _) = _traffic(facts)
    left_alone = percent(facts.get("accuracy_uncompressed"))
    link = facts.get("total_link_seconds")
    return [
        ("Accuracy, compressed", percent(facts.get("accuracy")), f"{left_alone} left alone"),
        ("Ratio, raw to sent", times(facts.get("ratio")), f"{raw} raw fp32"),
        ("Sent", both, f"{up} up, {down} down"),
        (
            "Wall time",
            duration(facts.get("wall_seconds")),
            "no link time" if link == 0 else f"{duration(link)} link time",
        ),
    ]


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows (name, value) of the summary; hashes only where this party knows them."""
    rows = [
        ("Accuracy, cut compressed", percent(facts.get("accuracy"))),
        ("Accuracy, cut left alone", percent(facts.get("accuracy_uncompressed"))),
        ("Balanced accuracy, cut compressed", percent(facts.get("balanced_accuracy"))),
        ("Test loss", f"{facts['loss']:.4g}" if is_number(facts.get("loss")) else MISSING),
        ("Ratio, raw to sent", times(facts.get("ratio"))),
        ("Bytes up in evaluations, not counted as sent", byte_size(facts.get("eval_up_bytes"))),
        *(
            [("Bytes down in evaluations, not counted as sent", byte_size(facts["eval_down_bytes"]))]
            if is_number(facts.get("eval_down_bytes"))
            else []
        ),
        ("Steps", count(facts.get("steps"))),
        ("Messages skipped, up", count(facts.get("up_skipped"))),
        ("Messages skipped, down", count(facts.get("down_skipped"))),
        ("Link time", duration(facts.get("total_link_seconds"))),
        ("Wall time", duration(facts.get("wall_seconds"))),
        ("Seed", count(facts.get("seed")).replace(",", "")),
    ]
    return rows + [(name, str(facts[name])) for name in _HASHES if facts.get(name)]


def summary_table(summary: dict[str, Any]) -> rich.table.Table:
    """Returns the table that ends a run on the terminal, from the fields of `summary.json`."""
    table = rich.table.Table(title="Result", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("Accuracy, cut compressed", percent(summary.get("accuracy")), "")
    table.add_row("Accuracy, cut left alone", percent(summary.get("accuracy_uncompressed")), "")
    for name, sent, raw, ratio in _traffic(summary)[:2]:
        table.add_row(f"Bytes {name}", sent, f"of {raw} raw, {ratio}")
    table.add_row("Ratio, raw to sent", times(summary.get("ratio")), "both directions")
    for way in ("up", "down"):
        if summary.get(f"{way}_skipped"):
            table.add_row(f"Messages {way} skipped", f"{summary[f'{way}_skipped']:,}", "their budget carried nothing")
    return table


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise check.InputError(f"{message}. Use: {self.format_usage().strip().removeprefix('usage: ')}")


def main(arguments: list[str] | None = None) -> int:
    """Runs `python -m train.report RUN_DIR` and returns the exit code: 0, or 2 after a bad folder."""
    parser = _Parser(prog="python -m train.report", description="Makes the report of a run again.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the run folder")
    try:
        print(write(parser.parse_args(arguments).run_dir))
    except (check.InputError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
