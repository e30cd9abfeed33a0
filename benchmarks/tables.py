"""Fills the tables of README.md and docs/results.md from benchmarks/results/*.json: no figure is typed by hand.

    python benchmarks/tables.py

A table stands between `<!-- table NAME -->` and `<!-- end -->`, its results in NAME.json; where that file is missing it
says so. `--check` only tells whether the pages are up to date (exit code 1 if not).
"""

import argparse
import collections
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from time_to_target import made_from

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")


def accuracy(rows: dict[str, Any]) -> list[list[str]]:
    """Returns the table of an accuracy benchmark: a line a cell."""
    cells = rows["cells"]
    table = [["cell", "seeds", "accuracy", "cut left alone", "ratio", "sent (up + down)"]]
    for name, cell in cells.items():
        if "refused" in cell:
            table.append([name, "", "no such frame", "", "", ""])
            continue
        runs = cell["runs"]
        error = cell["accuracy_standard_error"]
        spread = "" if error is None else f" ± {100 * error:.2f}"
        alone = sum(run["accuracy_uncompressed"] for run in runs) / len(runs)
        sent = sum(run["total_up_bytes"] + run["total_down_bytes"] for run in runs) / len(runs)
        table.append(
            [name, str(len(runs)), f"{100 * cell['accuracy_mean']:.2f}{spread} %", f"{100 * alone:.2f} %",
             f"{cell['ratio']:.1f}x", f"{sent / 1e6:,.1f} MB"]
        )  # fmt: skip
    return table


def step(rows: dict[str, Any]) -> list[list[str]]:
    """Returns the table of the step benchmark."""
    seconds, megabytes = rows["median_seconds"], rows["temporary_megabytes"]
    table = [["step", "median time", "temporary memory"]]
    table += [[name, f"{1000 * seconds[name]:.0f} ms", f"{megabytes[name]:.0f} MB"] for name in seconds]
    table.append(["identity / plain", f"{rows['identity_over_plain']:.3f}", ""])
    if "vmap_over_one_after_the_other" in rows:
        table.append(["seeds by vmap / one after the other", f"{rows['vmap_over_one_after_the_other']:.3f}", ""])
    extra = rows["nsc_sl_over_identity_in_cut_tensors"]
    table.append(["nsc_sl / identity", f"{rows['nsc_sl_over_identity']:.3f}", f"{extra:+.1f} cut tensors"])
    return table


def factorise(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the table of the factorisation benchmark: times over ours, errors over the truncated SVD's."""
    columns = {
        "view": "view",
        "ours": "ours_ms",
        "torch svd_lowrank": "svd_lowrank_over_ours",
        "torch PowerSGD step": "power_sgd_over_ours",
        "scikit-learn randomized_svd": "randomized_svd_over_ours",
        "read and write": "read_write_over_ours",
        "error": "error_over_svd",
        "error, 8 bits": "error_over_svd_8_bits",
        "error, 4 bits": "error_over_svd_4_bits",
    }

    def text(name: str, value: Any) -> str:
        if name == "view":
            return value
        return f"{value:.1f} ms" if name == "ours_ms" else f"{value:.3f}" if "error" in name else f"{value:.2f}x"

    return [list(columns), *([text(name, row[name]) for name in columns.values()] for row in rows)]


def distortion(rows: dict[str, Any]) -> list[list[str]]:
    """Returns the table of the distortion benchmark: multiples of the default, mean over the series of each way."""
    series = rows["series"]
    ways = {way: [variants for name, variants in series.items() if name.startswith(way)] for way in ("up", "down")}
    table = [["variant", "activations", "gradients", "components", "time"]]
    for name in next(iter(series.values())):
        means = []
        for found in ways.values():
            ratios = [variants[name]["distortion"] / variants["default"]["distortion"] for variants in found]
            absolute = statistics.mean(variants[name]["distortion"] for variants in found)
            means.append(f"{absolute:.3f}" if name == "default" else f"{statistics.mean(ratios):.3f}x")
        every = [variants[name] for variants in series.values()]
        seconds = statistics.median(values["time_over_default"] for values in every)
        table.append([name, *means, str(every[0]["rank"]), f"{seconds:.2f}x"])
    return table


def accuracy_vs_bytes(rows: dict[str, Any]) -> list[list[str]]:
    """Returns the grid: a line a method, a column a ratio; accuracy, its standard error and the real ratio."""
    cells = rows["cells"]
    # A bottleneck's tensor is smaller: the ratio is to what crosses without any.
    raw = max((run["raw_up_bytes"] + run["raw_down_bytes"] for cell in cells.values() for run in cell.get("runs", [])),
              default=0)  # fmt: skip
    ratios = sorted({int(name.split()[1][:-1]) for name in cells if " " in name})

    def text(cell: dict[str, Any] | None) -> str:
        if cell is None:
            return ""
        if "refused" in cell:
            return "no such frame"
        error = cell["accuracy_standard_error"]
        spread = "" if error is None else f" ± {100 * error:.2f} ({len(cell['runs'])})"
        sent = statistics.mean(run["total_up_bytes"] + run["total_down_bytes"] for run in cell["runs"])
        return f"{100 * cell['accuracy_mean']:.2f}{spread} at {raw / sent:.1f}x"

    methods = dict.fromkeys(name.split()[0] for name in cells if " " in name)
    table = [["method", *(f"{ratio}x" for ratio in ratios)]]
    table += [[method, *(text(cells.get(f"{method} {ratio}x")) for ratio in ratios)] for method in methods]
    table.append(["none", text(cells.get("none")), *[""] * (len(ratios) - 1)])
    return table


def time_to_target(rows: dict[str, Any]) -> list[list[str]]:
    """Returns a line a method: the seconds of its fastest cell on every trace."""
    cells = {name: cell["seconds"] for name, cell in rows["cells"].items()}
    traces = list(next(iter(cells.values())))

    def text(method: str, trace: str) -> str:
        run = {name: seconds[trace] for name, seconds in cells.items()
               if name.split()[0] == method and trace in seconds}  # fmt: skip
        reached = [(seconds, name) for name, seconds in run.items() if seconds is not None]
        if not reached:
            return "never" if run else "not run"
        seconds, name = min(reached)
        return f"{seconds:,.0f} s" + name[len(method) :].replace(" ", " @ ")

    methods = dict.fromkeys(name.split()[0] for name in cells)
    return [["method", *traces], *([method, *(text(method, trace) for trace in traces)] for method in methods)]


def peers(rows: dict[str, Any]) -> list[list[str]]:
    """Returns the table of the peers' benchmark: a line a method, up / down distortion by ratio."""
    methods = rows["methods"]
    ratios = sorted({ratio for row in methods.values() for ratio in row["up"]}, key=int)

    def text(row: dict[str, Any], ratio: str) -> str:
        if ratio not in row["up"]:
            return ""
        found = [row[way][ratio] for way in ("up", "down")]
        return "no such frame" if None in found else " / ".join(f"{value:.3f}" for value in found)

    lines = [[name, *(text(row, ratio) for ratio in ratios)] for name, row in methods.items()]
    return [["method", *(f"{ratio}x" for ratio in ratios)], *lines]


def device_part(rows: dict[str, Any]) -> list[list[str]]:
    """Returns a line a method: what it takes of a step's time, and how often it was compiled."""
    table = [["method", "ratio", "device part over a step", "frames over a step", "compilations"]]
    for name, row in rows["methods"].items():
        shares = (f"{row[share]:.2f}" for share in ("device_part_over_step", "frames_over_step"))
        table.append([name, f"{row['ratio']}x", *shares, str(row["compilations"])])
    return table


def two_parties(rows: dict[str, Any]) -> list[list[str]]:
    """Returns what a message and a step cost, and how messages fare on a recorded link."""
    table = [["what", "measured", "beside it", "ratio"]]
    for size, echo in rows["echo"].items():
        ours, bare = (f"{1000 * echo[f'{name}_seconds']:.2f} ms" for name in ("ours", "bare"))
        table.append([f"round trip of {size}", ours, f"{bare}, a bare gRPC echo", f"{echo['ours_over_bare']:.2f}"])
    step = rows["step"]
    ours, local = (f"{1000 * step[f'{name}_seconds']:.0f} ms" for name in ("two_party", "local"))
    table.append(["step of two parties", ours, f"{local}, a local step", f"{step['two_party_over_local']:.3f}"])
    link = rows["link"]
    for what, name in (("in time", "share_in_time"), ("of the uplink used", "up_share_of_link_used")):
        follows, same = (f"{link[way][name]:.0%}" for way in ("follows_the_link", "one_size"))
        table.append([f"{link['trace']}: {what}", follows, f"{same}, frames of one size", ""])
    return table


def namespaces(rows: dict[str, Any]) -> list[list[str]]:
    """Returns how messages fare over real TCP, that follow the link and of one size."""
    table = [["frames", "messages", "in time", "of the uplink used", "mean size up / down"]]
    for name, found in ((name, rows[name]) for name in ("follows_the_link", "one_size")):
        sizes = " / ".join(f"{found[f'mean_{way}_bytes'] / 1e3:.0f} kB" for way in ("up", "down"))
        shares = (f"{found[share]:.0%}" for share in ("share_in_time", "up_share_of_link_used"))
        table.append([name.replace("_", " "), str(found["messages"]), *shares, sizes])
    return table


def deadlines(rows: dict[str, Any]) -> list[list[str]]:
    """Returns a line a trace and deadline: what share of messages is in time and what share of the link is used."""
    names = list(next(iter(next(iter(rows.values())).values())))
    table = [["deadline", "trace", *names]]
    for deadline_s, traces in rows.items():
        for trace, found in traces.items():
            shares = (f"{found[name]['in_time']:.0%} / {found[name]['used']:.0%}" for name in names)
            table.append([f"{deadline_s} s", trace, *shares])
        means = (
            [statistics.mean(found[name][share] for found in traces.values()) for share in ("in_time", "used")]
            for name in names
        )
        table.append([f"{deadline_s} s", "mean", *(f"{in_time:.0%} / {used:.0%}" for in_time, used in means)])
    return table


def fuzz(rows: dict[str, Any]) -> list[list[str]]:
    """Returns what became of changed frames and conversations."""
    table = [["what", "number", "taken", "refused", "crashes", "longest", "memory grown"]]
    for name, row in rows.items():
        taken, refused = (
            (row.get("decoded", 0), row.get("refused", 0))
            if name == "frames"
            else (f"{row.get('request done', 0):,} requests",
                  f"{row.get('request refused', 0) + row.get('request strayed', 0):,} requests")
        )  # fmt: skip
        told = [value if isinstance(value, str) else f"{value:,}" for value in (taken, refused)]
        bad = row.get("crash", 0) + row.get("unchanged one refused", 0)
        table.append([name, f"{row['count']:,}", *told, str(bad), f"{row['longest_seconds']:.2f} s",
                      f"{row['memory_grown_bytes'] / 1e6:.0f} MB"])  # fmt: skip
    return table


def coding(rows: dict[str, Any]) -> list[list[str]]:
    """Returns how frames at random budgets keep to them, and how fast their coder is, a line a fact."""
    table = [["what", "measured"]]
    for way, seen in rows["budgets"].items():
        table.append([f"frames {way} over their budget", f"{seen['over_budget']} of {seen['frames']:,}"])
        table.append([f"share of the budget used, {way}", f"{seen['mean_share_used']:.1%}"])
        slack = f"{seen['mean_slack_over_frame']:.1%}, at most {seen['largest_slack_over_frame']:.1%}"
        table.append([f"zeros at the end of a frame, {way}", slack])
    for row in rows["coder"]:
        speeds = (f"{row['coefficients'] / row[f'{what}_seconds'] / 1e6:.0f} M" for what in ("encode", "decode"))
        table.append([f"coefficients of the cut encoded / decoded a second at {row['ratio']}x", " / ".join(speeds)])
    return table


def outage(rows: dict[str, Any]) -> list[list[str]]:
    """Returns a line a method: what one message of so many bytes does to the client and to the loss after it."""
    methods = rows["methods"]
    budgets = list(next(iter(methods.values())))

    def text(row: dict[str, float]) -> str:
        return f"{row['client_moved']:.1f}x, {row['loss_after']:+.2f} ({row['bytes']} B)"

    lines = [[name, *(text(row[budget]) for budget in budgets)] for name, row in methods.items()]
    return [["method", *(f"{int(budget):,} B" for budget in budgets)], *lines]


def kills(rows: dict[str, Any]) -> list[list[str]]:
    """Returns how the run fared in which parties were killed."""
    told = {"same_parameters": "the parameters of an unbroken run", "every_step_once": "every step made once"}
    table = [["what", "number"]]
    table += [[f"kills {name}", str(rows[name])] for name in ("of server", "of client", "of both")]
    table.append(["steps", f"{rows['steps']:,}"])
    return table + [[text, "yes" if rows[name] else "no"] for name, text in told.items()]


SHAPES: dict[str, Callable[[Any], list[list[str]]]] = {
    "step": step,
    "factorise": factorise,
    "distortion": distortion,
    "accuracy_vs_bytes": accuracy_vs_bytes,
    "time_to_target": time_to_target,
    "peers": peers,
    "device_part": device_part,
    "coding": coding,
    "two_parties": two_parties,
    "deadlines": deadlines,
    "namespaces": namespaces,
    "fuzz": fuzz,
    "kills": kills,
    "outage": outage,
}


def shape_of(name: str) -> Callable[[Any], list[list[str]]]:
    """Returns the table's maker: that of the results file's name or of its beginning; by default `accuracy`."""
    return next((make for beginning, make in SHAPES.items() if name.startswith(beginning)), accuracy)


def render(name: str, chosen: Sequence[str] = ()) -> str:
    """Returns the Markdown of one results file: its table, the command, the machine and the date.

    Args:
        name: of the results file.
        chosen: the lines to show, by their first column; by default all. Columns that are empty there are left out.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "Not measured yet.\n"
    result = json.loads(path.read_text())
    header, *lines = shape_of(name)(result["rows"])
    if chosen:
        if unknown := set(chosen) - {line[0] for line in lines}:
            raise SystemExit(f"table {name}: no line {', '.join(sorted(unknown))}")
        lines = [line for line in lines if line[0] in chosen]
        header, *lines = zip(*(column for column in zip(header, *lines) if any(column[1:])))
    table = [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(line)} |" for line in lines)]
    return "\n".join([*table, "", source(result), ""])


def source(result: dict[str, Any]) -> str:
    """Returns where a result comes from: the command, the machines, the versions of JAX, the dates.

    A table of runs grows call by call: the command is that of the last one, the rest is of all runs that tell.
    """
    rows, machine = result["rows"], result["machine"]
    runs = [run for cell in rows.get("cells", {}).values() if isinstance(cell, dict) for run in cell.get("runs", [])] \
        if isinstance(rows, dict) else []  # fmt: skip
    dates = sorted({run["date"] for run in runs if "date" in run} | {result["date"]})
    jax = sorted({run["jax"] for run in runs if "jax" in run} | {result["versions"]["jax"]})
    command = f"`{result['command']}`" + (" (the last call)" if runs else "")
    if runs:
        count = collections.Counter(_computed_on(run, machine["cpu"]) for run in runs)
        where = ", ".join(f"{number} run{'s' * (number > 1)} on {name}" for name, number in count.most_common())
    else:
        where = f"{machine['cpu']}, {machine['cores']} cores" + f", {machine['device']}" * (machine["device"] != "cpu")
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"{command}; {where}; jax {', '.join(jax)}; {when}."


def _computed_on(run: dict[str, Any], cpu: str) -> str:
    """Returns the accelerator of a run, or its processor; what an early run does not tell is `cpu`."""
    return run.get("cpu", cpu) if run.get("device", "cpu") == "cpu" else run["device"]


def stale_times() -> list[str]:
    """Returns the tables of times that were reckoned from other runs than those that are there."""
    found = []
    for path in sorted(RESULTS.glob("time_to_target_*.json")):
        rows = json.loads(path.read_text())["rows"]
        if rows.get("made_from") != made_from(rows["config"]):
            found.append(f"{path.stem} (run benchmarks/time_to_target.py)")
    return found


def main() -> int:
    """Fills the tables in; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    options = parser.parse_args()
    stale = []
    for page in PAGES:
        text = page.read_text()
        filled = re.sub(
            r"(<!-- table (\w+)(?: of ([\w ]+))? -->\n).*?(<!-- end -->)",
            lambda match: match[1] + "\n" + render(match[2], (match[3] or "").split()) + "\n" + match[4],
            text,
            flags=re.DOTALL,
        )
        if filled != text:
            stale.append(page.name)
            if not options.check:
                page.write_text(filled)
    stale += stale_times()
    print(f"out of date: {', '.join(stale)}" if stale else "up to date")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
