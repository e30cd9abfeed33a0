import io
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rich.console

from nscjax import check
from train import report

CONFIG = """seed = 3
run_dir = "runs/quickstart"

[data]
name = "digits"

[model]
name = "mlp"

[compress.up]
method = "nsc_sl"
ratio = 32.0

[compress.down]
method = "low_rank"
"""


def make_run(run_dir: Path, num_lines: int = 400, eval_every: int = 40, has_link: bool = True) -> Path:
    """Writes a run folder as training does: noisy curves, a bandwidth that swings, two skipped messages."""
    random = np.random.default_rng(0)
    log_every, raw = 5, 1_048_576
    totals = {"up": 0, "down": 0, "link": 0.0}
    skipped = {"up": 0, "down": 0}
    lines = []
    for number in range(1, num_lines + 1):
        step = number * log_every
        learnt = 1 - math.exp(-number / 80)
        budget = {
            "up": int(raw / 32 * (1 + 0.6 * math.sin(number / 25))) if has_link else raw // 32,
            "down": int(raw / 32 * (1 + 0.3 * math.cos(number / 40))) if has_link else raw // 32,
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
            totals[direction] += sent * log_every
        line["link_seconds"] = 0.02 if has_link else 0.0
        totals["link"] += line["link_seconds"] * log_every
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
    run_dir.mkdir(parents=True)
    (run_dir / "config.toml").write_text(CONFIG)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = num_lines * log_every
    summary = {name: value for name, value in lines[-1].items() if name != "kind"} | {
        "raw_up_bytes": steps * raw, "raw_down_bytes": steps * raw,
        "ratio": 2 * steps * raw / (totals["up"] + totals["down"]), "steps": steps, "seed": 3,
        "wall_seconds": 131.4,
        "client_params_sha256": "c1" * 32, "server_params_sha256": "5e" * 32, "params_sha256": "ab" * 32,
    }  # fmt: skip
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A finished run with its report; tests read it and leave it as it is."""
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "quickstart")
    assert report.write(run_dir) == run_dir / "report.html"
    return run_dir


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_metrics(run_dir: Path, lines: list[dict]) -> None:
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def names(run_dir: Path) -> list[str]:
    run = report.read(run_dir)
    return [plot.name for plot in report.plots(run.train, run.evals)]


def labels(run_dir: Path, name: str) -> list[list[str]]:
    """The lines of each panel of one plot."""
    run = report.read(run_dir)
    plot = {plot.name: plot for plot in report.plots(run.train, run.evals)}[name]
    return [[line.label for line in panel.series] for panel in plot.panels]


class Outline(HTMLParser):
    """Collects what a page refers to, and fails on tags that are not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.files: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.files += [value for name, value in attributes if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


# ---- the page ----


def test_page_shows_every_plot_in_both_colour_schemes(run_dir):
    plots = names(run_dir)
    over_steps = ["accuracy", "loss", "distortion", "rank", "frames"]
    assert plots == ["accuracy_bytes", *over_steps, "link_time", "accuracy_time"]
    expected = {f"plots/{name}-{scheme}.svg" for name in plots for scheme in ("light", "dark")}
    assert set(Outline((run_dir / "report.html").read_text()).files) == expected
    assert {f"plots/{path.name}" for path in (run_dir / "plots").iterdir()} == expected


def test_page_needs_neither_network_nor_script(run_dir):
    page = (run_dir / "report.html").read_text()
    assert "script" not in Outline(page).tags
    assert not re.search(r"https?:|//|url\(|@import", page)
    for path in (run_dir / "plots").iterdir():
        assert not re.search(r'href="(?!#)|<script|<image', path.read_text()), path


def test_plots_are_svg_with_text_units_and_labels(run_dir):
    for path in (run_dir / "plots").iterdir():
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    text = (run_dir / "plots" / "accuracy_bytes-light.svg").read_text()
    for shown in (">bytes sent<", ">test accuracy<", ">compressed<", ">left alone<", ">40 MB<", ">80 %<"):
        assert shown in text


def test_plots_differ_only_in_their_colours(run_dir):
    light, dark = ((run_dir / "plots" / f"rank-{scheme}.svg").read_text() for scheme in ("light", "dark"))
    for tone, colour in report.THEMES["light"].items():
        light = light.replace(colour, report.THEMES["dark"][tone])
    # Marks have ids that are hashes of their colours too.
    light, dark = (re.sub(r"\bm[0-9a-f]{10}\b", "mark", text) for text in (light, dark))
    assert light == dark


def test_page_holds_summary_and_config(run_dir):
    page = (run_dir / "report.html").read_text()
    summary = json.loads((run_dir / "summary.json").read_text())
    for name in ("accuracy", "accuracy_uncompressed", "balanced_accuracy"):
        assert f"{100 * summary[name]:.2f} %" in page
    for name in ("total_up_bytes", "total_down_bytes"):
        assert f"{summary[name] / 1e6:.1f} MB" in page
    for shown in (
        "2.1 GB",
        "4.19 GB",
        f"{summary['ratio']:.1f}×",
        "2 min 11 s",
        "40 s",
        "c1" * 32,
        "5e" * 32,
    ):
        assert shown in page
    assert "digits · mlp · nsc_sl up, low_rank down · finished after 2,000 steps" in page
    assert '<th scope="row">Messages skipped, up</th><td>2</td>' in page
    assert "run_dir = &#34;runs/quickstart&#34;" in page


def test_equal_folders_give_equal_reports(run_dir):
    before = {path: path.read_bytes() for path in [run_dir / "report.html", *(run_dir / "plots").iterdir()]}
    report.write(run_dir)
    assert {path: path.read_bytes() for path in before} == before


def test_text_from_files_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>"
    run_dir = make_run(tmp_path / "<b>run & co", num_lines=1)
    (run_dir / "config.toml").write_text(f'note = "{evil}"\ndata.name = "{evil}"\n')
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"params_sha256": evil}))
    page = report.write(run_dir).read_text()
    assert {"script", "b"}.isdisjoint(Outline(page).tags)
    assert page.count("&lt;script&gt;") == 4  # twice in the config, in the status line, in the hash
    assert "<h1>&lt;b&gt;run &amp; co</h1>" in page


# ---- runs that hold less ----


def test_one_line_of_each_kind(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=1)
    report.write(run_dir)
    assert len(names(run_dir)) == 8


def test_run_cut_short_is_reported_from_its_last_evaluation(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=100)
    (run_dir / "summary.json").unlink()
    write_metrics(run_dir, metrics(run_dir)[:50])
    page = report.write(run_dir).read_text()
    evaluated = report.read(run_dir).evals[-1]
    assert "not finished, last logged step 245" in page
    assert f"{100 * evaluated['accuracy']:.2f} %" in page
    assert "<td>–</td>" in page  # the raw bytes are known at the end only


@pytest.mark.parametrize("has_file", [True, False])
def test_run_without_any_metrics_yet(tmp_path, has_file):
    (tmp_path / "config.toml").write_text("")
    if has_file:
        (tmp_path / "metrics.jsonl").write_text("")
    page = report.write(tmp_path).read_text()
    assert "There is nothing to plot yet." in page
    assert "– · – · – up, – down · not finished, last logged step –" in page


def test_training_lines_alone(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=60)
    write_metrics(run_dir, [line for line in metrics(run_dir) if line["kind"] == "train"])
    assert names(run_dir) == ["accuracy", "loss", "distortion", "rank", "frames"]
    assert labels(run_dir, "loss") == [["", "training"]]


def test_direction_without_rank_has_no_rank_line(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=40)
    assert labels(run_dir, "rank") == [["up", "down"], ["up", "down"]]
    lines = [line | {"up_rank": None, "up_distortion": 0.0} for line in metrics(run_dir)]
    write_metrics(run_dir, lines)
    assert labels(run_dir, "rank") == [["down"], ["up", "down"]]
    assert labels(run_dir, "distortion") == [["down"]]
    lines = [line | {"down_rank": None, "down_distortion": None, "down_budget_bytes": None} for line in lines]
    write_metrics(run_dir, lines)
    assert labels(run_dir, "rank") == [["up"]]
    assert "distortion" not in names(run_dir)
    report.write(run_dir)


def test_run_without_link_has_no_link_plots(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=40, has_link=False)
    assert names(run_dir) == ["accuracy_bytes", "accuracy", "loss", "distortion", "rank", "frames"]
    assert report.read(run_dir).facts["total_link_seconds"] == 0


def test_values_that_are_not_finite_are_left_out(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=5, eval_every=1)
    lines = [line | {"loss": math.nan if line["step"] < 15 else math.inf} for line in metrics(run_dir)]
    write_metrics(run_dir, lines)
    (run_dir / "summary.json").write_text(json.dumps(lines[-1] | {"ratio": math.inf, "wall_seconds": math.nan}))
    assert "loss" not in names(run_dir)
    report.write(run_dir)


# ---- broken files ----


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"kind": "train", "st', 'line 3 is \'{"kind": "train", "st\'; allowed: a JSON object.'),
        ("[1, 2]", "line 3 is '[1, 2]'; allowed: a JSON object."),
        ("", "line 3 is ''; allowed: a JSON object."),
        ("\xff" * 999, "line 3 is 'ÿÿÿ"),
        ("[" * 99_999, "line 3 is '[[["),
        (
            '{"kind": "trian", "step": 1}',
            "line 3: kind is 'trian'; allowed: 'train', 'eval'. Did you mean 'train'?",
        ),
        ('{"step": 1}', "line 3: kind is None"),
        ('{"kind": "eval"}', "line 3: step is None; allowed: a number."),
        ('{"kind": "eval", "step": 1, "loss": "low"}', "line 3: loss is 'low'; allowed: a number or null."),
        ('{"kind": "train", "step": 1, "up_rank": true}', "line 3: up_rank is True"),
        (f'{{"kind": "train", "step": 1{"0" * 400}}}', "line 3: step is 1000"),
    ],
)
def test_broken_metrics_line_names_file_and_line(tmp_path, line, shown):
    run_dir = make_run(tmp_path / "run", num_lines=4)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(check.InputError) as caught:
        report.write(run_dir)
    assert str(caught.value).startswith(f"{run_dir / 'metrics.jsonl'} {shown}")
    assert len(str(caught.value)) < 700
    assert not (run_dir / "report.html").exists()


def test_metrics_line_that_is_not_utf8(tmp_path):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(check.InputError, match=r"metrics\.jsonl line 1 is"):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("summary.json", "{", "summary.json is '{'; allowed: a JSON object. Delete it."),
        ("summary.json", '{"ratio": []}', "summary.json: ratio is []; allowed: a number or null."),
        ("config.toml", "seed = ", "config.toml is not TOML: Invalid value (at end of document)."),
    ],
)
def test_broken_summary_or_config_names_the_file(tmp_path, name, text, shown):
    run_dir = make_run(tmp_path / "run", num_lines=1)
    (run_dir / name).write_text(text)
    with pytest.raises(check.InputError, match=re.escape(shown)):
        report.write(run_dir)


def test_folder_of_something_else(tmp_path):
    with pytest.raises(check.InputError, match=r"the run folder is .*; allowed: a folder with a config\.toml"):
        report.write(tmp_path)


# ---- lines and numbers ----


def test_thin_keeps_order_and_outliers():
    x = np.arange(50_001.0)
    y = np.ones_like(x)
    y[31_415] = 0.0
    y[2_718] = 9.0
    thinned_x, thinned_y = report.thin(x, y)
    assert len(thinned_x) == len(thinned_y) <= report.MOST_POINTS
    assert np.all(np.diff(thinned_x) > 0)
    assert {31_415.0, 2_718.0} <= set(thinned_x)
    assert (thinned_y.min(), thinned_y.max()) == (0.0, 9.0)


def test_thin_leaves_short_lines_alone():
    x = np.arange(7.0)
    assert report.thin(x, x, most=7) == (x, x)


def test_long_runs_are_drawn_with_few_points_and_their_mean(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=4_500, eval_every=900)
    run = report.read(run_dir)
    for plot in report.plots(run.train, run.evals):
        for axes in report._draw(plot, report.THEMES["light"]).axes:
            assert all(len(line.get_xdata()) <= report.MOST_POINTS for line in axes.lines)
    assert labels(run_dir, "rank")[0] == ["", "up", "", "down"]


def test_moving_mean_is_centred_and_keeps_constants():
    np.testing.assert_allclose(report.moving_mean(np.full(9, 3.0), 4), 3.0)
    np.testing.assert_allclose(report.moving_mean(np.arange(5.0), 3), [0.5, 1, 2, 3, 3.5])


def test_labels_of_lines_that_end_together_stay_apart():
    x = np.arange(3.0)
    series = [report.Series(name, x, x, "ink") for name in ("one", "two", "three")]
    figure = report._draw(report.Plot("p", "", "", [report.Panel("y", series)]), report.THEMES["light"])
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert len(heights) == 3
    assert np.all(np.diff(heights) > 0.1)
    assert heights[-1] <= 1.0


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (report.byte_size(0), "0 B"),
        (report.byte_size(999), "999 B"),
        (report.byte_size(999.7), "1 kB"),
        (report.byte_size(1_262_000), "1.26 MB"),
        (report.byte_size(3e15), "3,000 TB"),
        (report.byte_size(None), "–"),
        (report.byte_size(math.inf), "–"),
        (report.percent(0.97222), "97.22 %"),
        (report.percent("x"), "–"),
        (report.duration(4.217), "4.22 s"),
        (report.duration(59.97), "1 min 00 s"),
        (report.duration(3_905), "1 h 05 min"),
        (report.duration(math.nan), "–"),
        (report.times(1000, 31), "32.3×"),
        (report.times(123_456, 10), "12,346×"),
        (report.times(5, 0), "–"),
        (report.times(None), "–"),
        (report.count(12_345), "12,345"),
    ],
)
def test_numbers_as_people_read_them(shown, expected):
    assert shown == expected


# ---- the terminal ----


def test_summary_table_says_accuracy_bytes_and_ratio(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    console = rich.console.Console(file=io.StringIO(), width=100)
    console.print(report.summary_table(summary))
    text = console.file.getvalue()
    rows = {
        "Accuracy, cut compressed": "96.41 %", "Accuracy, cut left alone": "96.81 %", "Bytes up": "51.4 MB",
        "Bytes down": "39.7 MB", "Ratio": "46.1×",
    }  # fmt: skip
    for name, value in rows.items():
        assert any(name in line and value in line for line in text.splitlines()), (name, text)


def test_summary_table_of_a_party_that_knows_little():
    console = rich.console.Console(file=io.StringIO())
    console.print(report.summary_table({"steps": 3}))
    assert console.file.getvalue().count("–") >= 5


def test_command_makes_the_report_again(tmp_path, capsys):
    run_dir = make_run(tmp_path / "run", num_lines=1)
    assert report.main([str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"
    assert (run_dir / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["missing"], "error: the run folder is 'missing'"),
        (
            [],
            "error: the following arguments are required: RUN_DIR. Use: python -m train.report [-h] RUN_DIR",
        ),
    ],
)
def test_command_on_bad_input(arguments, shown, capsys):
    assert report.main(arguments) == 2
    assert capsys.readouterr().err.startswith(shown)


def test_command_as_a_module_and_without_global_plot_state(tmp_path):
    """`python -m train.report` ends with the exit code of `main`; the module leaves pyplot alone."""
    done = subprocess.run([sys.executable, "-m", "train.report", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the run folder is")
    code = "import sys; from train import report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
