"""What a person sees while a run goes on: a progress bar with the numbers that matter, and a line an evaluation."""

from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from train.report import summary_table
from train.text import byte_size, percent


def waiting(what: str) -> AbstractContextManager:
    """Shows that the program is busy with `what` before there are steps to count; on a pipe it shows nothing."""
    return Console(stderr=True).status(what)


class Terminal:
    """Progress and messages on stderr, the closing table on stdout. On a pipe the bar is left out, lines remain."""

    def __init__(self, num_steps: int, done: int, doing: str = "training", *, has_bar: bool = True) -> None:
        """Makes the bar for `num_steps` steps, of which `done` were made before; `doing` is what they are of."""
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
        )
        self._steps = self._progress.add_task(doing, total=num_steps, completed=done)
        self._batches = self._progress.add_task("evaluating", total=1, visible=False)
        # Below the bar, so that both fit a terminal of 80 columns.
        self._numbers = Text("compiling", style="dim", overflow="ellipsis", no_wrap=True)
        shown = Group(self._progress, self._numbers)
        self._live = (
            Live(shown, console=self._console, refresh_per_second=10) if has_bar and self._console.is_terminal else None
        )

    def __enter__(self) -> "Terminal":
        """Starts the bar."""
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        """Stops the bar and leaves it as it is."""
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints one line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, line: dict[str, Any], ratio: float) -> None:
        """Shows a step's metrics beside the bar; `line` as in `metrics.jsonl`."""
        ranks = "/".join(str(line[f"{way}_rank"]) for way in ("up", "down") if line[f"{way}_rank"] is not None)
        numbers = [
            *(f"{name} {line[name]:.3f}" for name in ("loss", "accuracy") if line[name] is not None),
            f"rank {ranks}" if ranks else "",
            f"{byte_size(line['up_bytes'])} up {byte_size(line['down_bytes'])} down",
            f"{ratio:.1f}x",
            f"{line['up_skipped'] + line['down_skipped']} skipped" if line["up_skipped"] + line["down_skipped"] else "",
            "{up_mbit_per_s:.3g}/{down_mbit_per_s:.3g} Mbit/s".format(**line) if "up_mbit_per_s" in line else "",
            f"waiting {line['waited_share']:.0%}" if "waited_share" in line else "",
        ]
        self._progress.update(self._steps, completed=line["step"])
        self._numbers.plain = "  ".join(filter(None, numbers))

    def advanced(self, num_steps: int) -> None:
        """Shows that so many steps more were made, of which there is nothing to say."""
        self._progress.update(self._steps, advance=num_steps)
        self._numbers.plain = ""

    def evaluating(self, done: int, total: int) -> None:
        """Shows how far an evaluation is."""
        self._progress.update(self._batches, completed=done, total=total, visible=done < total)

    def evaluated(self, line: dict[str, Any], ratio: float) -> None:
        """Prints a line for an evaluation."""
        self.say(
            f"step {line['step']:>6}  epoch {line['epoch']:>3}  loss {line['loss']:.4f}  "
            f"accuracy {percent(line['accuracy'])} (cut left alone {percent(line['accuracy_uncompressed'])})  "
            f"{byte_size(line['total_up_bytes'])} up, {byte_size(line['total_down_bytes'])} down, ratio {ratio:.1f}x"
        )

    def finished(self, summary: dict[str, Any], report: Any) -> None:
        """Prints the closing table and where the report is."""
        console = Console()
        console.print(summary_table(summary))
        console.print(f"report: {report}", highlight=False, soft_wrap=True)
