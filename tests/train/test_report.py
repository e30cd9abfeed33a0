import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import rich.console

from nscjax import check
from tests.train.test_plots import RAW, make_lines
from train import report, text

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


def make_run(run_dir: Path, **options) -> Path:
    """Writes a run folder as training does, with the lines of `make_lines(**options)`."""
    lines = make_lines(**options)
    run_dir.mkdir(parents=True)
    (run_dir / "config.toml").write_text(CONFIG)
    write_metrics(run_dir, lines)
    last = lines[-1]
    raw = last["step"] * RAW
    summary = {name: value for name, value in last.items() if name != "kind"} | {
        "raw_up_bytes": raw, "raw_down_bytes": raw,
        "ratio": 2 * raw / (last["total_up_bytes"] + last["total_down_bytes"]), "steps": last["step"], "seed": 3,
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
    over_steps = ["accuracy", "loss", "distortion", "rank", "frames"]
    names = ["accuracy_bytes", *over_steps, "link_time", "accuracy_time"]
    expected = {f"plots/{name}-{scheme}.svg" for name in names for scheme in ("light", "dark")}
    assert set(Outline((run_dir / "report.html").read_text()).files) == expected
    assert {f"plots/{path.name}" for path in (run_dir / "plots").iterdir()} == expected


def test_page_needs_neither_network_nor_script(run_dir):
    page = (run_dir / "report.html").read_text()
    assert "script" not in Outline(page).tags
    assert not re.search(r"https?:|//|url\(|@import", page)
    for path in (run_dir / "plots").iterdir():
        assert not re.search(r'href="(?!#)|<script|<image', path.read_text()), path


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
        f"{summary['ratio']:.1f}x",
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
    assert report.write(run_dir).read_text().count("<figure") == 8


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
    assert "– link time" in page
    assert "– · – · – up, – down · not finished, last logged step –" in page


def test_run_without_link_says_so(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=4, has_link=False)
    assert "no link time" in report.write(run_dir).read_text()


def test_values_that_are_not_finite_are_left_out(tmp_path):
    run_dir = make_run(tmp_path / "run", num_lines=5, eval_every=1)
    lines = [line | {"loss": math.nan if line["step"] < 15 else math.inf} for line in metrics(run_dir)]
    write_metrics(run_dir, lines)
    (run_dir / "summary.json").write_text(json.dumps(lines[-1] | {"ratio": math.inf, "wall_seconds": math.nan}))
    page = report.write(run_dir).read_text()
    assert "loss-light.svg" not in page
    assert 'Wall time<span class="value">–</span>' in page


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


# ---- numbers as people read them ----


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.byte_size(0), "0 B"),
        (text.byte_size(999), "999 B"),
        (text.byte_size(999.7), "1 kB"),
        (text.byte_size(1_262_000), "1.26 MB"),
        (text.byte_size(3e15), "3,000 TB"),
        (text.byte_size(None), "–"),
        (text.byte_size(math.inf), "–"),
        (text.percent(0.97222), "97.22 %"),
        (text.percent("x"), "–"),
        (text.duration(4.217), "4.22 s"),
        (text.duration(59.97), "1 min 00 s"),
        (text.duration(3_905), "1 h 05 min"),
        (text.duration(math.nan), "–"),
        (text.times(1000, 31), "32.3x"),
        (text.times(123_456, 10), "12,346x"),
        (text.times(5, 0), "–"),
        (text.times(None), "–"),
        (text.count(12_345), "12,345"),
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
        "Bytes down": "39.7 MB", "Ratio": "46.1x",
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


def test_command_as_a_module(tmp_path):
    """`python -m train.report` ends with the exit code of `main`."""
    done = subprocess.run([sys.executable, "-m", "train.report", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the run folder is")
