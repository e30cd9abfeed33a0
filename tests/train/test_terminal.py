import re

import pytest

from tests.train.test_journal import EVAL_FIELDS, SCORES, SUMMARY_FIELDS
from train.terminal import Terminal

TRAIN_LINE = {
    "step": 3, "loss": 1.23456, "accuracy": 0.5, "up_bytes": 1500, "down_bytes": 700, "up_rank": 5, "down_rank": 4,
    "up_skipped": 0, "down_skipped": 0,
}  # fmt: skip
EVAL_LINE = {**dict.fromkeys(EVAL_FIELDS, 0), **SCORES, "step": 12, "epoch": 2, "total_up_bytes": 2_000_000}
SUMMARY = {**dict.fromkeys(SUMMARY_FIELDS, 0), **EVAL_LINE, "raw_up_bytes": 8_000_000, "ratio": 4.0}


def test_on_a_pipe_there_are_lines_and_no_bar(capsys):
    with Terminal(10, 0) as terminal:
        terminal.say("runs/a [bold]: nothing [is] markup")
        terminal.step(TRAIN_LINE, 12.34)
        terminal.evaluating(1, 3)
        terminal.evaluated(EVAL_LINE, 4.0)
        terminal.evaluating(3, 3)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "runs/a [bold]: nothing [is] markup"
    pattern = (
        r"step     12  epoch   2  loss 0\.5000  accuracy 75\.00 % \(cut left alone 80\.00 %\)  2 MB up, 0 B down, "
        r"ratio 4\.0x"
    )
    assert re.fullmatch(pattern, lines[1])
    assert len(lines) == 2


def test_a_long_line_is_not_broken(capsys):
    with Terminal(10, 0) as terminal:
        terminal.say("a word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_on_a_terminal_there_is_a_bar_with_numbers(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with Terminal(10, 2) as terminal:
        terminal.step(TRAIN_LINE, 12.34)
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "loss 1.235  accuracy 0.500  rank 5/4  1.5 kB up 700 B down  12.3x" in printed
    assert "3/10" in printed


def test_skipped_messages_are_told(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with Terminal(10, 0) as terminal:
        terminal.step({**TRAIN_LINE, "up_skipped": 2, "down_skipped": 3}, 1.0)
        terminal.finished({**SUMMARY, "up_skipped": 2, "down_skipped": 0}, "report.html")
    printed = capsys.readouterr()
    assert "5 skipped" in printed.err
    assert "Messages up skipped" in printed.out
    assert "Messages down skipped" not in printed.out


@pytest.mark.parametrize(("up", "down", "shown"), [(None, None, None), (None, 4, "rank 4 "), (5, None, "rank 5 ")])
def test_a_method_without_rank_shows_none(capsys, monkeypatch, up, down, shown):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with Terminal(10, 0) as terminal:
        terminal.step({**TRAIN_LINE, "up_rank": up, "down_rank": down}, 1.0)
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert shown in printed if shown else "rank" not in printed


def test_the_table_and_the_report_end_a_run_on_stdout(capsys):
    Terminal(10, 0).finished(SUMMARY, "runs/" + "long/" * 50 + "report.html")
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "75.00 %" in printed.out
    assert printed.out.splitlines()[-1] == "report: runs/" + "long/" * 50 + "report.html"
