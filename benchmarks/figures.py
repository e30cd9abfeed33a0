"""Draws docs/figures/*.svg from benchmarks/results: accuracy over bytes, bytes to a target, time to a target.

    python benchmarks/figures.py

From every `accuracy_vs_bytes_*.json` accuracy over bytes with its spread; from every `time_to_target_*.json` the
fewest bytes with which each method reached the target, and the seconds of its fastest cell on every trace. Our methods
are thick.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from accuracy_vs_bytes import METHODS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from record import RESULTS
from time_to_target import CHANCE, steps_to

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
OURS = {"nsc_sl": "#0069a8", "nsc_rd": "#00a3c4", "nsc_sl_adaptive": "#003a70"}
NONE = "#68717d"
COLOURS = (
    "#c24e00", "#00785a", "#8a5fbf", "#b8860b", "#4c6272", "#a8325e", "#3b7dd8", "#6b8e23", "#d47fa6", "#7a5230",
    "#2aa7a7", "#e07b39", "#5b3a8c", "#8d8d3a", "#333333", "#9c9c9c",
)  # fmt: skip
MARKERS = "osD^vPX*"


def lines(cells: dict[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    """Returns method -> [(megabytes, accuracy, standard error)], by bytes."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for name, cell in cells.items():
        if runs := cell.get("runs"):
            sent = sum(run["total_up_bytes"] + run["total_down_bytes"] for run in runs) / len(runs) / 1e6
            point = sent, 100 * cell["accuracy_mean"], 100 * (cell["accuracy_standard_error"] or 0)
            found.setdefault(name.split()[0], []).append(point)
    return {method: sorted(points) for method, points in found.items()}


def styles() -> dict[str, dict[str, Any]]:
    """Returns colour, marker and order by method: the same in every figure."""
    others = {*METHODS} - {"none", *OURS}
    found: dict[str, dict[str, Any]] = {
        method: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[(i + 3 * (i // len(COLOURS))) % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.2,
            "zorder": 2,
        }
        for i, method in enumerate(sorted(others))
    }
    ours = {"marker": "o", "markersize": 5, "linewidth": 2.5, "zorder": 3}
    return found | {method: ours | {"color": colour} for method, colour in OURS.items()}


def over_bytes(result: dict[str, Any]) -> Figure:
    """Returns accuracy over bytes of one results file."""
    by_method = lines(result["rows"]["cells"])
    none = by_method.pop("none", None)
    figure, axes = _empty("test accuracy in per cent, cut compressed", result["rows"]["config"])
    style = styles()
    for method in sorted(by_method, key=lambda method: -max(point[1] for point in by_method[method])):
        megabytes, accuracy, error = zip(*by_method[method])
        axes.errorbar(megabytes, accuracy, error, capsize=2, label=method, **style[method])
    if none:
        axes.axhline(none[0][1], color=NONE, linestyle="--", linewidth=1, label="none")
    _log_axis(axes, "bytes sent in training, both directions, headers included", "{:,g} MB")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def fewest_bytes(cells: dict[str, Any], target: float) -> dict[str, tuple[float, str]]:
    """Returns method -> (megabytes, cell) of the cell that reached the target with the fewest, in all its seeds."""
    best: dict[str, tuple[float, str]] = {}
    for name, cell in cells.items():
        steps = [steps_to(target, run["evals"], CHANCE) for run in cell.get("runs", [])]
        if not steps or None in steps:
            continue
        sent = statistics.mean(
            step / run["steps"] * (run["total_up_bytes"] + run["total_down_bytes"]) / 1e6
            for step, run in zip(steps, cell["runs"])
            if step is not None
        )
        method = name.split()[0]
        best[method] = min(best.get(method, (sent, name)), (sent, name))
    return best


def bytes_to_target(result: dict[str, Any], target: float) -> Figure:
    """Returns the fewest bytes to the target by method."""
    best = fewest_bytes(result["rows"]["cells"], target)
    figure, axes = _empty("", f"{result['rows']['config']}: bytes until {target:.0%} test accuracy")
    for i, method in enumerate(sorted(best, key=lambda method: best[method], reverse=True)):
        sent, cell = best[method]
        axes.barh(i, sent, color=OURS.get(method, NONE), height=0.6)
        axes.annotate(f" {sent:,.{1 if sent < 10 else 0}f} MB", (sent, i), va="center", fontsize=8)
        axes.annotate(f"{cell} ", (0, i), xycoords=("axes fraction", "data"), va="center", ha="right", fontsize=9)
    axes.set_yticks([])
    axes.margins(x=0.15)
    _log_axis(axes, "both directions, headers included; of each method its cheapest cell", "{:,g} MB")
    return figure


def time_to_target(result: dict[str, Any]) -> Figure:
    """Returns the seconds of every method's fastest cell on every trace."""
    rows = result["rows"]
    cells = rows["cells"]
    no_bytes = cells.get("no_bytes", {"seconds": {}})["seconds"]
    traces = sorted(next(iter(cells.values()))["seconds"], key=lambda trace: cells["none"]["seconds"][trace] or 0)
    figure, axes = _empty("", f"{rows['config']}: time until {rows['target']:.0%} test accuracy on recorded links")
    methods = dict.fromkeys(name.split()[0] for name in cells if name not in ("no_bytes", "nsc_sl_hindsight"))
    style = styles() | {"none": {"color": NONE, "marker": "x"}}
    for method in methods:
        own = [cell["seconds"] for name, cell in cells.items() if name.split()[0] == method]
        points = [
            (min(found), y)
            for y, trace in enumerate(traces)
            if (found := [seconds[trace] for seconds in own if seconds.get(trace) is not None])
        ]
        if points:
            axes.plot(*zip(*points), **style[method] | {"linestyle": "none", "label": method})
    for y, trace in enumerate(traces):
        if trace in no_bytes:
            label = {"label": "the latency alone"} if y == 0 else {}
            axes.plot([no_bytes[trace]] * 2, [y - 0.3, y + 0.3], color=NONE, linewidth=1, **label)
    axes.set_yticks(range(len(traces)), traces)
    _log_axis(axes, "of each method its fastest cell; computing, latency and bytes on the link", "{:,g} s")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _empty(y_label: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left")
    axes.grid(color="#e4e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _log_axis(axes: Axes, label: str, unit: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: unit.format(value)))
    axes.set_xlabel(label)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _save(figure: Figure, name: str) -> None:
    path = FIGURES / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "nscjax", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    print(path.relative_to(FIGURES.parent.parent))


def main() -> None:
    """Draws every results file."""
    for path in sorted(RESULTS.glob("accuracy_vs_bytes_*.json")):
        _save(over_bytes(_read(path)), path.stem)
    for path in sorted(RESULTS.glob("time_to_target_*.json")):
        timed = _read(path)
        config = timed["rows"]["config"]
        grid = _read(RESULTS / f"accuracy_vs_bytes_{config}.json")
        _save(bytes_to_target(grid, timed["rows"]["target"]), f"bytes_to_target_{config}")
        _save(time_to_target(timed), path.stem)


if __name__ == "__main__":
    main()
