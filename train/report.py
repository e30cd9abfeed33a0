"""The report of a run: a page with plots that anyone can open, made from the run folder's files alone.

`write` makes `report.html` and the plots it shows; `summary_table` is the table that ends a run on the
terminal; `python -m train.report RUN_DIR` makes the report again. A plot is first described (`Plot`, `Panel`,
`Series`) and then drawn twice, once for each colour scheme. May import `nscjax.check` and drawing libraries.
"""

import argparse
import json
import math
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import matplotlib as mpl
import numpy as np
import rich.table
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nscjax import check

MOST_POINTS = 2000  # of one line; more are invisible and make the page slow
MISSING = "–"  # shown where a run folder does not hold a value

Metrics = list[dict[str, Any]]  # lines of metrics.jsonl, each one JSON object
Tone = Literal["ink", "muted", "up", "down", "accent"]

# Hues of Okabe and Ito, which stay apart in colour-blind eyes; darker on white, lighter on black.
THEMES: dict[str, dict[str, str]] = {
    "light": {
        "ink": "#1c2128", "muted": "#68717d", "grid": "#e4e7eb",
        "up": "#0069a8", "down": "#c24e00", "accent": "#00785a",
    },
    "dark": {
        "ink": "#e8eaed", "muted": "#98a2ae", "grid": "#30363f",
        "up": "#5cb8f0", "down": "#f09a4a", "accent": "#3fcfa2",
    },
}  # fmt: skip

# The fields of metrics.jsonl and summary.json that the report reads as numbers.
_NUMBERS = (
    "step", "loss", "accuracy", "balanced_accuracy", "accuracy_uncompressed",
    "up_bytes", "up_rank", "up_distortion", "up_budget_bytes", "up_skipped", "total_up_bytes", "raw_up_bytes",
    "down_bytes", "down_rank", "down_distortion", "down_budget_bytes", "down_skipped", "total_down_bytes",
    "raw_down_bytes", "eval_up_bytes", "total_link_seconds", "ratio", "steps", "seed", "wall_seconds",
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


class Series(NamedTuple):
    """One line of a plot."""

    label: str  # written at the line's end; empty for none
    x: np.ndarray  # [N] float64, finite
    y: np.ndarray  # [N] float64, finite
    tone: Tone
    is_faint: bool = False


class Panel(NamedTuple):
    """One pair of axes with lines that share a unit."""

    y_label: str
    series: list[Series]
    unit: Literal["number", "whole", "percent", "bytes"] = "number"
    scale: Literal["from zero", "free", "log"] = "from zero"


class Plot(NamedTuple):
    """One figure of the report: panels over one another that share the x axis."""

    name: str  # of its files
    title: str
    caption: str
    panels: list[Panel]
    x_label: str = "training step"
    x_unit: Literal["number", "whole", "bytes"] = "whole"


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


def is_number(value: Any) -> bool:
    """Tells whether `value` is a float (NaN and infinities included) or an int of up to 64 bits; no bool."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**64)


# ---- numbers as people read them ----


def percent(value: Any) -> str:
    """Returns a fraction as per cent: 0.9722 -> '97.22 %'."""
    return f"{100 * value:.2f} %" if is_number(value) else MISSING


def byte_size(value: Any) -> str:
    """Returns a number of bytes with a decimal unit (1 kB = 1000 B): 1262000 -> '1.26 MB'."""
    if not is_number(value) or not math.isfinite(value):
        return MISSING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}" if abs(value) < 999.5 else f"{value:,.0f} {unit}"


def duration(value: Any) -> str:
    """Returns seconds as '4.2 s', '3 min 12 s' or '1 h 05 min'."""
    if not is_number(value) or not math.isfinite(value):
        return MISSING
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def times(raw: Any, sent: Any = 1) -> str:
    """Returns raw / sent as a ratio: '31.8×'."""
    if not is_number(raw) or not is_number(sent) or not sent or not math.isfinite(raw / sent):
        return MISSING
    return f"{raw / sent:,.{1 if raw / sent < 100 else 0}f}×"


def count(value: Any) -> str:
    """Returns a whole number with its thousands set apart."""
    return f"{value:,.0f}" if is_number(value) else MISSING


# ---- what the plots show ----


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `most` of the points, in their order: the lowest and the highest of equal stretches.

    Unlike every n-th point this keeps single outliers, such as the one frame that was skipped.

    Shapes:
        x, y: float64 [N], finite; both results: float64 [min(N, most)] or shorter.
    """
    if len(x) <= most:
        return x, y
    stretches = np.array_split(np.arange(len(x)), most // 2)
    kept = np.unique([index[pick(y[index])] for index in stretches for pick in (np.argmin, np.argmax)])
    return x[kept], y[kept]


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean over `window` values around each one, fewer at both ends.

    Shapes:
        values and result: float64 [N].
    """
    weights = np.ones(min(window, len(values)))
    sums = np.convolve(values, weights, "same")
    return sums / np.convolve(np.ones(len(values)), weights, "same")


def _column(lines: Metrics, field: str) -> np.ndarray:
    values = [line.get(field) for line in lines]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _series(label: str, lines: Metrics, field: str, tone: Tone, x: np.ndarray | None = None) -> Series:
    """Returns the line of one field over the steps (or over `x`), without the points that are not finite."""
    x = _column(lines, "step") if x is None else x
    y = _column(lines, field)
    finite = np.isfinite(x) & np.isfinite(y)
    return Series(label, x[finite], y[finite], tone)


def _with_mean(line: Series, least: int) -> list[Series]:
    """Returns the line; from `least` points on, the line made faint and its moving mean on top."""
    if len(line.x) < least:
        return [line]
    mean = moving_mean(line.y, len(line.y) // 50 + 1)
    return [line._replace(label="", is_faint=True), line._replace(y=mean)]


def _directions(lines: Metrics, field: str) -> list[Series]:
    pair = [_series("up", lines, f"up_{field}", "up"), _series("down", lines, f"down_{field}", "down")]
    return [drawn for line in pair for drawn in _with_mean(line, least=1000)]


def _trained(lines: Metrics, field: str) -> list[Series]:
    return _with_mean(_series("training", lines, field, "muted"), least=50)


def _byte_panel(y_label: str, series: list[Series]) -> Panel:
    """Returns a panel with a log scale where one line would lie flat on the floor of the other."""
    values = np.concatenate([line.y[line.y > 0] for line in series])
    is_wide = values.size > 0 and values.max() > 20 * np.percentile(values, 5)
    return Panel(y_label, series, unit="bytes", scale="log" if is_wide else "from zero")


def _frame_panel(direction: Literal["up", "down"], lines: Metrics) -> Panel:
    budget = _series("budget", lines, f"{direction}_budget_bytes", "muted")
    frame = _series("frame", lines, f"{direction}_bytes", direction)
    drawn = [*_with_mean(budget, least=1000), *_with_mean(frame, least=1000)]
    return _byte_panel(f"{direction}link frame", drawn)


def _accuracy_panel(evals: Metrics, x: np.ndarray) -> Panel:
    """Returns the panel that compares the same parameters with the cut compressed and left alone."""
    left_alone = _series("left alone", evals, "accuracy_uncompressed", "muted", x)
    return Panel(
        "test accuracy",
        [left_alone, _series("compressed", evals, "accuracy", "accent", x)],
        "percent",
        "free",
    )


def plots(train: Metrics, evals: Metrics) -> list[Plot]:
    """Returns the plots that the metrics have values for, in the order of the page."""
    sent = _column(evals, "total_up_bytes") + _column(evals, "total_down_bytes")
    seconds = _series("", evals, "total_link_seconds", "ink")
    described = [
        Plot(
            "accuracy_bytes",
            "Accuracy over bytes sent",
            "Test accuracy against all training frames so far, up and down, headers included.",
            [_accuracy_panel(evals, sent)],
            "bytes sent",
            "bytes",
        ),
        Plot(
            "accuracy",
            "Accuracy over steps",
            "Training batches, and the test set with the cut compressed.",
            [
                Panel(
                    "accuracy",
                    [*_trained(train, "accuracy"), _series("test", evals, "accuracy", "accent")],
                    "percent",
                    "free",
                )
            ],
        ),
        Plot(
            "loss",
            "Loss over steps",
            "Training batches, and the test set with the cut compressed.",
            [Panel("loss", [*_trained(train, "loss"), _series("test", evals, "loss", "accent")])],
        ),
        Plot(
            "distortion",
            "Distortion over steps",
            "Squared error of what arrived relative to what was to be sent; 1 where nothing arrived.",
            [Panel("relative squared error", _directions(train, "distortion"), scale="log")],
        ),
        Plot(
            "rank",
            "Rank and budget over steps",
            "Components sent in a frame, and the bytes that the link or the ratio allowed for it.",
            [
                Panel("rank", _directions(train, "rank"), "whole"),
                _byte_panel("budget of a frame", _directions(train, "budget_bytes")),
            ],
        ),
        Plot(
            "frames",
            "Bytes of a frame against its budget",
            "Frames with their headers, and the most that was allowed for each.",
            [_frame_panel("up", train), _frame_panel("down", train)],
        ),
    ]
    if np.any(seconds.y > 0):
        described += _link_plots(evals, seconds)
    return [plot for plot in map(_without_gaps, described) if plot.panels]


def _link_plots(evals: Metrics, seconds: Series) -> list[Plot]:
    from_start = seconds._replace(x=np.insert(seconds.x, 0, 0.0), y=np.insert(seconds.y, 0, 0.0))
    return [
        Plot(
            "link_time",
            "Link time over steps",
            "Seconds that training frames have spent on the link so far, up and down.",
            [Panel("link time, s", [from_start])],
        ),
        Plot(
            "accuracy_time",
            "Accuracy over link time",
            "Test accuracy against the seconds that training frames have spent on the link so far.",
            [_accuracy_panel(evals, _column(evals, "total_link_seconds"))],
            "link time, s",
            "number",
        ),
    ]


def _without_gaps(plot: Plot) -> Plot:
    """Returns the plot without lines that have nothing to show and without panels that have no line left."""
    panels = []
    for panel in plot.panels:
        drawn = [line for line in panel.series if len(line.x)]
        if panel.scale == "log":
            drawn = [line._replace(x=line.x[line.y > 0], y=line.y[line.y > 0]) for line in drawn if np.any(line.y > 0)]
        if drawn:
            panels.append(panel._replace(series=drawn))
    if any(line.is_faint for panel in panels for line in panel.series):
        plot = plot._replace(caption=f"{plot.caption} Faint: as logged; bold: moving mean.")
    return plot._replace(panels=panels)


# ---- drawing ----


def _draw(plot: Plot, theme: dict[str, str]) -> Figure:
    """Returns the figure of a plot; call it, and save the figure, under `_style(theme)`."""
    figure = Figure(figsize=(4.5, 1.0 + 1.75 * len(plot.panels)), layout="constrained")
    grid = figure.subplots(len(plot.panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, panel in zip(grid, plot.panels, strict=True):
        _draw_panel(axes, panel, theme)
    grid[-1].set_xlabel(plot.x_label)
    grid[-1].xaxis.set_major_formatter(_FORMATTERS[plot.x_unit])
    grid[-1].xaxis.set_major_locator(_ticks(plot.x_unit))
    grid[-1].set_xlim(left=0)
    return figure


def _ticks(unit: str) -> ticker.Locator:
    return ticker.MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3, integer=unit == "whole")


_FORMATTERS: dict[str, ticker.Formatter] = {
    "bytes": ticker.FuncFormatter(lambda value, _: byte_size(value)),
    "percent": ticker.FuncFormatter(lambda value, _: f"{100 * value:.10g} %"),
    "whole": ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"),
    "number": ticker.FuncFormatter(lambda value, _: f"{value:,.{10 if abs(value) < 1e6 else 3}g}"),
}


def _style(theme: dict[str, str]) -> Any:
    """Returns a context with our look; text stays text, and equal runs give equal files."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "nscjax", "font.size": 9.5, "axes.titlesize": 9.5,
            "text.color": theme["ink"], "axes.labelcolor": theme["muted"], "axes.titlecolor": theme["muted"],
            "xtick.color": theme["grid"], "xtick.labelcolor": theme["muted"],
            "ytick.labelcolor": theme["muted"],
            "axes.edgecolor": theme["grid"], "axes.spines.top": False, "axes.spines.right": False,
            "axes.spines.left": False, "ytick.major.size": 0.0, "ytick.minor.size": 0.0, "axes.grid": True,
            "axes.grid.axis": "y", "grid.color": theme["grid"], "axes.axisbelow": True,
        }
    )  # fmt: skip


def _draw_panel(axes: Axes, panel: Panel, theme: dict[str, str]) -> None:
    for line in panel.series:
        x, y = thin(line.x, line.y)
        is_first = line.tone == panel.series[0].tone
        axes.plot(
            x,
            y,
            color=theme[line.tone],
            alpha=0.3 if line.is_faint else 1.0,
            # The first is wider, so that it shows on both sides of one that covers it.
            linewidth=1.0 if line.is_faint else 2.0 if is_first else 1.2,
            marker="o" if len(x) <= 25 else "",
            markersize=4,
            clip_on=False,
        )
    axes.margins(x=0)
    axes.set_title(panel.y_label, loc="left", pad=9)
    if panel.scale == "log":
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        # At least a decade, so that noise looks like noise and 1, 2 or 5 is among the ticks.
        if high < 10 * low:
            middle = math.sqrt(low * high)
            low, high = axes.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
        subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=6))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.yaxis.set_major_locator(_ticks(panel.unit))
        if panel.scale == "from zero":
            axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_FORMATTERS[panel.unit])
    if panel.unit == "percent":
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1))
    _label_ends(axes, panel.series, theme)


def _label_ends(axes: Axes, series: list[Series], theme: dict[str, str], gap: float = 0.11) -> None:
    """Writes each line's name at its right end, names at least `gap` of the height apart."""
    axes.get_ylim()  # settles the limits that the transform below reads
    to_height = axes.transScale + axes.transLimits
    ends = [(to_height.transform((line.x[-1], line.y[-1]))[1], line) for line in series if line.label]
    ends.sort(key=lambda end: end[0])
    heights: list[float] = []
    for height, _ in ends:
        heights.append(max(height, heights[-1] + gap) if heights else height)
    excess = max(0.0, heights[-1] - 1) if heights else 0.0
    for height, (_, line) in zip(heights, ends, strict=True):
        axes.text(1.03, height - excess, line.label, color=theme[line.tone], va="center", transform=axes.transAxes)


def _save(plot: Plot, folder: Path) -> None:
    """Writes NAME-light.svg and NAME-dark.svg."""
    for name, theme in THEMES.items():
        path = folder / f"{plot.name}-{name}.svg"
        with _style(theme):
            _draw(plot, theme).savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        text = path.read_text(encoding="utf-8")
        # Measured in the font that matplotlib brings along, shown in the reader's own, which is narrower.
        path.write_text(text.replace("'DejaVu Sans'", "system-ui, Helvetica, Arial, 'DejaVu Sans'"), "utf-8")


# ---- the page and the table ----


def write(run_dir: Path) -> Path:
    """Writes `report.html` and `plots/` of a run folder from its own files, and returns the page's path.

    A run that was cut short, or has just begun, is reported from what there is. Equal folders give equal
    reports.

    Raises:
        check.InputError: a file of the folder is missing or broken; names it and, in the metrics, the line.
    """
    run = read(run_dir)
    shown = plots(run.train, run.evals)
    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    for plot in shown:
        _save(plot, folder)
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

    methods = ", ".join(f"{setting('compress', name, 'method')} {name}" for name in ("up", "down"))
    steps = count(run.facts.get("steps"))
    end = f"finished after {steps} steps" if run.is_finished else f"not finished, last logged step {steps}"
    return f"{setting('data', 'name')} · {setting('model', 'name')} · {methods} · {end}"


def _sum(first: Any, second: Any) -> Any:
    return first + second if is_number(first) and is_number(second) else None


def _traffic(facts: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns rows (direction, sent, raw, ratio)."""
    pairs = {name: (facts.get(f"total_{name}_bytes"), facts.get(f"raw_{name}_bytes")) for name in ("up", "down")}
    pairs["both"] = (_sum(pairs["up"][0], pairs["down"][0]), _sum(pairs["up"][1], pairs["down"][1]))
    return [(name, byte_size(sent), byte_size(raw), times(raw, sent)) for name, (sent, raw) in pairs.items()]


def _tiles(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns the figures that come first: (name, value, what to compare it with)."""
    (_, up, _, _), (_, down, _, _), (_, both, raw, _) = _traffic(facts)
    link = facts.get("total_link_seconds")
    return [
        (
            "Accuracy, compressed",
            percent(facts.get("accuracy")),
            f"{percent(facts.get('accuracy_uncompressed'))} left alone",
        ),
        ("Ratio, raw to sent", times(facts.get("ratio")), f"{raw} raw fp32"),
        ("Sent", both, f"{up} up, {down} down"),
        (
            "Wall time",
            duration(facts.get("wall_seconds")),
            f"{duration(link)} link time" if link else "no link time",
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
