"""The plots of a report. Each is first described (`Plot`, `Panel`, `Series`), then drawn, in two colour schemes."""

import io
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.text import byte_size

MOST_POINTS = 2000  # of one line; more are invisible and make the page slow

Metrics = list[dict[str, Any]]  # lines of metrics.jsonl, each one JSON object
Tone = Literal["ink", "muted", "up", "down", "accent"]
Unit = Literal["number", "whole", "percent", "bytes"]

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
    unit: Unit = "number"
    scale: Literal["from zero", "free", "log"] = "from zero"


class Plot(NamedTuple):
    """One figure of the report: panels over one another that share the x axis."""

    name: str  # of its files
    title: str
    caption: str
    panels: list[Panel]
    x_label: str = "training step"
    x_unit: Unit = "whole"


# ---- what the plots show ----


def describe(train: Metrics, evals: Metrics) -> list[Plot]:
    """Returns the plots that the metrics have values for, in the order of the page."""
    sent = _column(evals, "total_up_bytes") + _column(evals, "total_down_bytes")
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
            [Panel("accuracy", _train_and_test(train, evals, "accuracy"), "percent", "free")],
        ),
        Plot(
            "loss",
            "Loss over steps",
            "Training batches, and the test set with the cut compressed.",
            [Panel("cross-entropy, nats", _train_and_test(train, evals, "loss"))],
        ),
        Plot(
            "distortion",
            "Distortion over steps",
            "Squared error of what arrived relative to what was to be sent; 1 where nothing arrived.",
            [
                Panel("relative squared error", _directions(train, "distortion"), scale="log"),
                Panel("second cut", _directions(train, "distortion", "second_"), scale="log"),
            ],
        ),
        Plot(
            "rank",
            "Rank and budget over steps",
            "Components sent in a frame, and the bytes that the link or the ratio allowed for it.",
            [
                Panel("rank", _directions(train, "rank"), "whole"),
                Panel("rank, second cut", _directions(train, "rank", "second_"), "whole"),
                _byte_panel("budget of a frame", _directions(train, "budget_bytes")),
            ],
        ),
        Plot(
            "frames",
            "Bytes of a frame against its budget",
            "Frames with their headers, and the most that was allowed for each; of two cuts, a direction's together.",
            [
                _frame_panel("uplink frame", "up", train),
                _frame_panel("downlink frame", "down", train),
                _frame_panel("up, second cut", "up", train, "second_"),
                _frame_panel("down, second cut", "down", train, "second_"),
            ],
        ),
        *_link_plots(evals),
    ]
    return [plot for plot in map(_without_gaps, described) if plot.panels]


def _link_plots(evals: Metrics) -> list[Plot]:
    """Returns the plots of link time; none where the link takes none."""
    seconds = _series("", evals, "total_link_seconds", "ink")
    if not np.any(seconds.y > 0):
        return []
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


def _accuracy_panel(evals: Metrics, x: np.ndarray) -> Panel:
    """Returns the panel that compares the same parameters with the cut compressed and left alone."""
    left_alone = _series("left alone", evals, "accuracy_uncompressed", "muted", x)
    compressed = _series("compressed", evals, "accuracy", "accent", x)
    return Panel("test accuracy", [left_alone, compressed], "percent", "free")


def _frame_panel(label: str, direction: Literal["up", "down"], lines: Metrics, cut: str = "") -> Panel:
    budget = _series("budget", lines, f"{cut}{direction}_budget_bytes", "muted")
    frame = _series("frame", lines, f"{cut}{direction}_bytes", direction)
    return _byte_panel(label, [*_with_mean(budget, 1000), *_with_mean(frame, 1000)])


def _byte_panel(y_label: str, series: list[Series]) -> Panel:
    """Returns a panel with a log scale where one line would lie flat on the floor of the other."""
    values = np.concatenate([line.y[line.y > 0] for line in series])
    is_wide = values.size > 0 and values.max() > 20 * np.percentile(values, 5)
    return Panel(y_label, series, "bytes", "log" if is_wide else "from zero")


def _train_and_test(train: Metrics, evals: Metrics, field: str) -> list[Series]:
    return [*_with_mean(_series("training", train, field, "muted"), 50), _series("test", evals, field, "accent")]


def _directions(lines: Metrics, field: str, cut: str = "") -> list[Series]:
    """Returns both directions' lines of a field; `cut` is "second_" for those of a second cut."""
    up, down = _series("up", lines, f"{cut}up_{field}", "up"), _series("down", lines, f"{cut}down_{field}", "down")
    return [*_with_mean(up, 1000), *_with_mean(down, 1000)]


def _series(label: str, lines: Metrics, field: str, tone: Tone, x: np.ndarray | None = None) -> Series:
    """Returns the line of one field over the steps (or over `x`), without the points that are not finite."""
    x = _column(lines, "step") if x is None else x
    y = _column(lines, field)
    finite = np.isfinite(x) & np.isfinite(y)
    return Series(label, x[finite], y[finite], tone)


def _column(lines: Metrics, field: str) -> np.ndarray:
    """Returns a field of all lines, float64 [N]; NaN where it is null or missing."""
    return np.array([line.get(field) for line in lines], dtype=np.float64)


def _with_mean(line: Series, least: int) -> list[Series]:
    """Returns the line; from `least` points on, the line made faint and its moving mean on top."""
    if len(line.x) < least:
        return [line]
    mean = moving_mean(line.y, len(line.y) // 50 + 1)
    return [line._replace(label="", is_faint=True), line._replace(y=mean)]


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean over `window` values around each one, fewer at both ends; `window` is at most N.

    Shapes:
        values and result: float64 [N].
    """
    weights = np.ones(window)
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")


def _without_gaps(plot: Plot) -> Plot:
    """Returns the plot without lines that have nothing to show and without panels that have no line left."""
    panels = []
    for panel in plot.panels:
        lines = panel.series
        if panel.scale == "log":
            lines = [line._replace(x=line.x[line.y > 0], y=line.y[line.y > 0]) for line in lines]
        lines = [line for line in lines if len(line.x)]
        if lines:
            panels.append(panel._replace(series=lines))
    if any(line.is_faint for panel in panels for line in panel.series):
        plot = plot._replace(caption=f"{plot.caption} Faint: as logged; bold: moving mean.")
    return plot._replace(panels=panels)


# ---- drawing ----


def save(plot: Plot, folder: Path) -> None:
    """Writes NAME-light.svg and NAME-dark.svg; equal plots give equal files."""
    drawn, light = io.StringIO(), THEMES["light"]
    with _style(light):
        _draw(plot, light).savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # Measured in the font that matplotlib brings along, shown in the reader's own, which is narrower.
    text = drawn.getvalue().replace("'DejaVu Sans'", "system-ui, Helvetica, Arial, 'DejaVu Sans'")
    for name, theme in THEMES.items():
        recoloured = text
        for tone, colour in light.items():
            recoloured = recoloured.replace(colour, theme[tone])
        (folder / f"{plot.name}-{name}.svg").write_text(recoloured, "utf-8")


def _style(theme: dict[str, str]) -> Any:
    """Returns a context with our look; text stays text, and equal runs give equal files."""
    return mpl.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "nscjax", "font.size": 9.5, "axes.titlesize": 9.5,
            "text.color": theme["ink"], "axes.labelcolor": theme["muted"], "axes.titlecolor": theme["muted"],
            "xtick.color": theme["grid"], "xtick.labelcolor": theme["muted"],
            "ytick.labelcolor": theme["muted"], "ytick.major.pad": 7.0,
            "axes.edgecolor": theme["grid"], "axes.spines.top": False, "axes.spines.right": False,
            "axes.spines.left": False, "ytick.major.size": 0.0, "ytick.minor.size": 0.0, "axes.grid": True,
            "axes.grid.axis": "y", "grid.color": theme["grid"], "axes.axisbelow": True,
        }
    )  # fmt: skip


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
            markersize=5.5 if is_first else 4.0,
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
        # Five points where 0 and 1 leave the room, so that a small difference looks small.
        more = max(0.0, 0.05 - (high - low)) / 2
        axes.set_ylim(max(low - more, 0), min(high + more, 1))
    _label_ends(axes, panel.series, theme)


_FORMATTERS: dict[Unit, ticker.Formatter] = {
    "bytes": ticker.FuncFormatter(lambda value, _: byte_size(value)),
    "percent": ticker.FuncFormatter(lambda value, _: f"{100 * value:.10g} %"),
    "whole": ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"),
    "number": ticker.FuncFormatter(lambda value, _: f"{value:,.{10 if abs(value) < 1e6 else 3}g}"),
}


def _ticks(unit: Unit) -> ticker.Locator:
    is_whole = unit == "whole"  # then one tick will do where more would be fractions
    return ticker.MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=1 if is_whole else 3, integer=is_whole)


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
