"""Draws docs/figures/*.svg from benchmarks/results/accuracy_vs_bytes_*.json: accuracy over bytes, with its spread.

    python benchmarks/figures.py

One figure a results file; our method is the thick line.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from record import RESULTS

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
OURS = "nsc_sl"
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


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws one results file."""
    by_method = lines(result["rows"]["cells"])
    none = by_method.pop("none", None)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    order = sorted(by_method, key=lambda method: (method != OURS, -max(point[1] for point in by_method[method])))
    for i, method in enumerate(order):
        megabytes, accuracy, error = zip(*by_method[method])
        style = {"color": "#0069a8", "linewidth": 2.5, "zorder": 3} if method == OURS else {
            "color": COLOURS[i % len(COLOURS)], "linewidth": 1.2}  # fmt: skip
        axes.errorbar(
            megabytes,
            accuracy,
            error,
            marker=MARKERS[(i + 3 * (i // len(COLOURS))) % len(MARKERS)],
            ms=4,
            capsize=2,
            label=method,
            **style,
        )
    if none:
        axes.axhline(none[0][1], color="#68717d", linestyle="--", linewidth=1, label="none")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g} MB"))
    axes.set_xlabel("bytes sent in training, both directions, headers included")
    axes.set_ylabel("test accuracy in per cent, cut compressed")
    axes.set_title(result["rows"]["config"], loc="left")
    axes.grid(color="#e4e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "nscjax", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Draws every results file of accuracy over bytes."""
    for path in sorted(RESULTS.glob("accuracy_vs_bytes_*.json")):
        figure = FIGURES / f"{path.stem}.svg"
        draw(json.loads(path.read_text()), figure)
        print(figure.relative_to(FIGURES.parent.parent))


if __name__ == "__main__":
    main()
