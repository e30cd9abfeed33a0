import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from train import plots

RAW = 1_048_576  # bytes of one cut tensor
LOG_EVERY = 5


def make_lines(num_lines: int = 400, eval_every: int = 40, has_link: bool = True) -> list[dict]:
    """Returns metrics as of a training: noisy curves, a bandwidth that swings, two skipped messages."""
    random = np.random.default_rng(0)
    totals = {"up": 0, "down": 0, "link": 0.0}
    skipped = {"up": 0, "down": 0}
    lines = []
    for number in range(1, num_lines + 1):
        step = number * LOG_EVERY
        learnt = 1 - math.exp(-number / 80)
        budget = {
            "up": int(RAW / 32 * (1 + 0.6 * math.sin(number / 25))) if has_link else RAW // 32,
            "down": int(RAW / 32 * (1 + 0.3 * math.cos(number / 40))) if has_link else RAW // 32,
        }
        line = {"kind": "train", "step": step, "epoch": step / 100}
        line["loss"] = 2.3 * (1 - 0.95 * learnt) * random.lognormal(0, 0.15)
        line["accuracy"] = float(np.clip(0.1 + 0.88 * learnt + random.normal(0, 0.02), 0, 1))
        for direction, most in (("up", 16), ("down", 12)):
            rank = min(most, int(budget[direction] * most / 40_000 + random.integers(0, 3)))
            sent = min(budget[direction], 2_000 * rank + 36)
            if number in (150, 151) and direction == "up":
                rank, sent = 0, 36
                skipped["up"] += 1
            line |= {
                f"{direction}_bytes": sent,
                f"{direction}_rank": rank,
                f"{direction}_distortion": 1.0 if not rank else 0.4 / (1 + rank) * random.lognormal(0, 0.2),
                f"{direction}_budget_bytes": budget[direction],
                f"{direction}_skipped": skipped[direction],
            }
            totals[direction] += sent * LOG_EVERY
        line["link_seconds"] = 0.02 if has_link else 0.0
        totals["link"] += line["link_seconds"] * LOG_EVERY
        lines.append(line)
        if number % eval_every == 0 or number == num_lines:
            accuracy = 0.1 + 0.87 * learnt
            lines.append(
                {
                    "kind": "eval", "step": step, "epoch": step / 100, "loss": 2.3 * (1 - 0.93 * learnt),
                    "accuracy": accuracy, "balanced_accuracy": accuracy - 0.002,
                    "accuracy_uncompressed": accuracy + 0.004, "total_up_bytes": totals["up"],
                    "total_down_bytes": totals["down"], "total_link_seconds": totals["link"],
                    "eval_up_bytes": 360_000,
                }
            )  # fmt: skip
    return lines


def describe(lines: list[dict]) -> dict[str, plots.Plot]:
    """The plots of a run by their names."""
    train, evals = ([line for line in lines if line["kind"] == kind] for kind in ("train", "eval"))
    return {plot.name: plot for plot in plots.describe(train, evals)}


def labels(lines: list[dict], name: str) -> list[list[str]]:
    """The lines of each panel of one plot."""
    return [[line.label for line in panel.series] for panel in describe(lines)[name].panels]


# ---- what the plots show ----


def test_training_lines_alone():
    lines = [line for line in make_lines(num_lines=60) if line["kind"] == "train"]
    assert list(describe(lines)) == ["accuracy", "loss", "distortion", "rank", "frames"]
    assert labels(lines, "loss") == [["", "training"]]


def test_nothing_to_show():
    assert describe([]) == {}


def test_direction_without_rank_has_no_rank_line():
    lines = make_lines(num_lines=40)
    assert labels(lines, "rank") == [["up", "down"], ["up", "down"]]
    lines = [line | {"up_rank": None, "up_distortion": 0.0} for line in lines]
    assert labels(lines, "rank") == [["down"], ["up", "down"]]
    assert labels(lines, "distortion") == [["down"]]
    lines = [line | {"down_rank": None, "down_distortion": None, "down_budget_bytes": None} for line in lines]
    assert labels(lines, "rank") == [["up"]]
    assert "distortion" not in describe(lines)


def test_run_without_link_has_no_link_plots():
    lines = make_lines(num_lines=40, has_link=False)
    assert list(describe(lines)) == ["accuracy_bytes", "accuracy", "loss", "distortion", "rank", "frames"]


def test_values_that_are_not_finite_are_left_out():
    lines = [line | {"loss": math.nan if line["step"] < 15 else math.inf} for line in make_lines(num_lines=5)]
    assert "loss" not in describe(lines)


# ---- files ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The plots of a run; tests read them."""
    folder = tmp_path_factory.mktemp("plots")
    for plot in describe(make_lines()).values():
        plots.save(plot, folder)
    return folder


def test_plots_are_svg_with_text_units_and_labels(folder):
    for path in folder.iterdir():
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = (folder / "accuracy_bytes-light.svg").read_text()
    for shown in (">bytes sent<", ">test accuracy<", ">compressed<", ">left alone<", ">40 MB<", ">80 %<"):
        assert shown in text


def test_every_scheme_has_its_own_colours_alone(folder):
    for scheme in plots.THEMES:
        text = (folder / f"rank-{scheme}.svg").read_text()
        used = set(re.findall(r"#[0-9a-f]{6}\b", text))
        assert plots.THEMES[scheme]["muted"] in used
        assert used <= set(plots.THEMES[scheme].values())


def test_global_plot_state_is_left_alone():
    code = "import sys; from train import plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- lines and axes ----


def test_thin_keeps_order_and_outliers():
    x = np.arange(50_001.0)
    y = np.ones_like(x)
    y[31_415] = 0.0
    y[2_718] = 9.0
    thinned_x, thinned_y = plots.thin(x, y)
    assert len(thinned_x) == len(thinned_y) <= plots.MOST_POINTS
    assert np.all(np.diff(thinned_x) > 0)
    assert {31_415.0, 2_718.0} <= set(thinned_x)
    assert (thinned_y.min(), thinned_y.max()) == (0.0, 9.0)


def test_thin_leaves_short_lines_alone():
    x = np.arange(7.0)
    assert plots.thin(x, x, most=7) == (x, x)


def test_long_runs_are_drawn_with_few_points_and_their_mean():
    lines = make_lines(num_lines=4_500, eval_every=900)
    for plot in describe(lines).values():
        for axes in plots._draw(plot, plots.THEMES["light"]).axes:
            assert all(len(line.get_xdata()) <= plots.MOST_POINTS for line in axes.lines)
    assert labels(lines, "rank")[0] == ["", "up", "", "down"]


def test_moving_mean_is_centred_and_keeps_constants():
    np.testing.assert_allclose(plots.moving_mean(np.full(9, 3.0), 4), 3.0)
    np.testing.assert_allclose(plots.moving_mean(np.arange(5.0), 3), [0.5, 1, 2, 3, 3.5])


def test_labels_of_lines_that_end_together_stay_apart():
    x = np.arange(3.0)
    series = [plots.Series(name, x, x, "ink") for name in ("one", "two", "three")]
    figure = plots._draw(plots.Plot("p", "", "", [plots.Panel("y", series)]), plots.THEMES["light"])
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert len(heights) == 3
    assert np.all(np.diff(heights) > 0.1)
    assert heights[-1] <= 1.0


@pytest.mark.parametrize("accuracy", [0.0, 0.35, 1.0])
def test_small_differences_of_accuracy_look_small(accuracy):
    series = [plots.Series("one", np.zeros(1), np.array([accuracy]), "ink")]
    plot = plots.Plot("p", "", "", [plots.Panel("accuracy", series, "percent", "free")])
    low, high = plots._draw(plot, plots.THEMES["light"]).axes[0].get_ylim()
    assert 0 <= low <= accuracy <= high <= 1
    assert high - low >= 0.0249


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 1), (0, 3), (4, 20_000)])
def test_whole_numbers_have_whole_ticks(low, high):
    series = [plots.Series("rank", np.arange(2.0), np.array([low, high]), "ink")]
    figure = plots._draw(plots.Plot("p", "", "", [plots.Panel("rank", series, "whole")]), plots.THEMES["light"])
    ticks = figure.axes[0].yaxis.get_majorticklocs()
    assert len(ticks) > 0
    np.testing.assert_array_equal(ticks, np.round(ticks))
