"""Bandwidth traces, constant, read from a file or generated: made on the host, used in a compiled step."""

import csv
import itertools
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from nscjax import check
from nscjax.types import Array

UNLIMITED_MBIT_PER_S = 1e24
"""The rate of a link without a limit: finite, so that no infinity or NaN arises, and far above real ones."""

MAX_MBIT_PER_S = 1e9
MAX_SECONDS = 1e9
MAX_ROWS = 1_000_000
MAX_FILE_BYTES = 64_000_000
HEADER = ["time_s", "mbit_per_s"]


class Trace(NamedTuple):
    """What a link carries over time: piecewise constant and periodic (after the last segment it begins anew).

    A rate of zero is real: a transfer waits through it. Some segment must carry something.
    """

    seconds: Array  # [K] float32: length of each segment
    mbit_per_s: Array  # [K] float32: rate in it, in 10^6 bits per second


def constant(mbit_per_s: float) -> Trace:
    """Returns a link that always carries `mbit_per_s`.

    Raises:
        InputError: the rate is not in (0, 1e9].
    """
    if not 0 < mbit_per_s <= MAX_MBIT_PER_S:
        raise check.error("mbit_per_s", mbit_per_s, f"a number in (0, {MAX_MBIT_PER_S:g}]")
    return _trace(np.ones(1), np.array([mbit_per_s]))


def unlimited() -> Trace:
    """Returns a link that carries any message at once; what is left is its latency."""
    return _trace(np.ones(1), np.array([UNLIMITED_MBIT_PER_S]))


def load_trace(name: str) -> Trace:
    """Returns the trace of a CSV file, or a generated one.

    Args:
        name: a path (see `read_trace`), or "lte_like:SEED" with a seed >= 0 (see `lte_like`).

    Raises:
        InputError: the seed is not a whole number, or the file cannot be used.
    """
    kind, colon, seed = str(name).partition(":")
    if kind != "lte_like" or not colon:
        return read_trace(name)
    if not (seed.isascii() and seed.isdigit() and len(seed) <= 18):
        raise check.error(
            "trace", name, "the path of a CSV file, or 'lte_like:SEED' with a whole number in [0, 10**18)"
        )
    return lte_like(int(seed))


def read_trace(path: str | Path) -> Trace:
    """Reads a trace from a CSV file with the header `time_s,mbit_per_s`.

    The first time is 0 and times rise strictly. A row's rate holds until the next row's time; the last row's
    holds for one usual (median) step, or for one second where it is the only one.

    Raises:
        InputError: there is no such file, or it is none of this form; names file, line and what was found.
    """
    path = Path(path)
    if not path.is_file():
        raise check.error("trace", str(path), "an existing CSV file, or 'lte_like:SEED'")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise check.error(f"{path}: size in bytes", size, f"at most {MAX_FILE_BYTES}", "Shorten the trace.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(_rows(path, file))
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise check.error(str(path), str(problem), "a readable CSV file of plain text") from problem
    if not rows:
        raise check.error(f"{path}: number of rows", 0, "at least one row below the header")
    times, rates = np.array(rows).T
    steps = np.diff(times)
    trace = _trace(np.append(steps, np.median(steps) if len(steps) else 1.0), rates)
    mbit = float(np.dot(np.float64(trace.seconds), np.float64(trace.mbit_per_s)))
    if mbit < 1e-6:
        raise check.error(f"{path}: all rates together carry", f"{mbit:g} Mbit", "at least one bit")
    return trace


def write_trace(trace: Trace, path: str | Path) -> None:
    """Writes a trace as the CSV file that `read_trace` reads; the length of the last segment is not in it.

    Raises:
        InputError: the file cannot be written.
    """
    # Shortest decimals, added without rounding: 0.1, 0.2, 0.3 rather than the drift of binary sums.
    steps = [Decimal(str(step)) for step in np.asarray(trace.seconds)[:-1]]
    times = itertools.accumulate(steps, initial=Decimal(0))
    rows = [f"{time:f},{rate!s}" for time, rate in zip(times, np.asarray(trace.mbit_per_s))]
    try:
        Path(path).write_text("\n".join([",".join(HEADER), *rows, ""]), encoding="utf-8")
    except OSError as problem:
        raise check.error("trace file", str(path), "a path that can be written", str(problem)) from problem


def lte_like(seed: int, duration_s: float = 600.0) -> Trace:
    """Returns a generated trace in steps of 0.1 s that moves like the uplink of a 4G phone in a car.

    The log rate is the sum of two Ornstein-Uhlenbeck processes: shadowing (8 s correlation time, deviation
    0.5) and fast fading and scheduling (0.3 s, 0.4). Handovers and holes in coverage silence the link: one in
    5 s on average, 0.5 s long on average, both exponential. Over 600 s this aims at a mean of 3 Mbit/s (2 to
    4.5, by seed), a share of zeros of 5 to 15 %, and a coefficient of variation of 0.6 to 1.1.

    Args:
        seed: >= 0; equal seeds give equal traces.
        duration_s: length in s, from 0.1 to 100,000.

    Raises:
        InputError: seed or duration is out of range.

    Source: own; outages and correlation as in the LTE drive traces of Winstein et al., "Stochastic Forecasts
    Achieve High Throughput and Low Delay over Cellular Networks", NSDI 2013.
    """
    check.count("seed", seed, 0)
    step_s = 0.1
    if not step_s <= duration_s <= MAX_ROWS * step_s:
        raise check.error("duration_s", duration_s, f"a number from {step_s} to {MAX_ROWS * step_s:g}")
    random = np.random.default_rng(seed)
    num_steps = round(duration_s / step_s)
    shadowing = _fluctuation(random, num_steps, step_s / 8.0, 0.5)
    fading = _fluctuation(random, num_steps, step_s / 0.3, 0.4)
    mean_while_up = 3.0 * (5.0 + 0.5) / 5.0
    rates = mean_while_up * np.exp(shadowing + fading - (0.5**2 + 0.4**2) / 2)
    begin = 1
    while (begin := begin + int(random.exponential(5.0 / step_s))) < num_steps:
        end = begin + 1 + int(random.exponential(0.5 / step_s))
        rates[begin:end] = 0.0
        begin = end
    return _trace(np.full(num_steps, step_s), np.round(rates, 4))


def _fluctuation(random: np.random.Generator, num_steps: int, decay: float, deviation: float) -> np.ndarray:
    """Returns a stationary Ornstein-Uhlenbeck process [num_steps] that forgets a share of `decay` a step."""
    keep = math.exp(-decay)
    noise = deviation * random.standard_normal(num_steps)
    noise[1:] *= math.sqrt(1 - keep**2)
    return np.array(list(itertools.accumulate(noise, lambda value, shock: keep * value + shock)))


def _trace(seconds: np.ndarray, mbit_per_s: np.ndarray) -> Trace:
    return Trace(jnp.asarray(seconds, jnp.float32), jnp.asarray(mbit_per_s, jnp.float32))


def _rows(path: Path, lines: Iterator[str]) -> Iterator[tuple[float, float]]:
    """Yields the checked (time, rate) pairs of a file's lines."""
    reader = csv.reader(lines)
    header = next(reader, [])
    if [name.strip() for name in header] != HEADER:
        raise check.error(f"{path}, line 1: header", ",".join(header), repr(",".join(HEADER)))
    last_s = None
    for index, cells in enumerate(cells for cells in reader if cells):
        where = f"{path}, line {reader.line_num}"
        if index == MAX_ROWS:
            raise check.error(f"{where}: row number", index + 1, f"at most {MAX_ROWS}", "Shorten the trace.")
        if len(cells) != len(HEADER):
            raise check.error(where, ",".join(cells), "two numbers, time_s and mbit_per_s")
        time_s = _number(f"{where}: time_s", cells[0], MAX_SECONDS)
        if last_s is None and time_s != 0:
            raise check.error(f"{where}: first time_s", cells[0], "0", "Subtract it from all times.")
        if last_s is not None and time_s <= last_s:
            raise check.error(f"{where}: time_s", cells[0], f"a time after the row before it ({last_s:g})")
        yield time_s, _number(f"{where}: mbit_per_s", cells[1], MAX_MBIT_PER_S)
        last_s = time_s


def _number(name: str, text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise check.error(name, text, f"a number from 0 to {most:g}")
    return number
