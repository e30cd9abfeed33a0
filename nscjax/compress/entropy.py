"""Entropy coding of quantised coefficients: integer tables that both ends share, a range coder from a library.

Coefficients come in groups of equal statistics, one coefficient a sample. A group's class says how wide it is, in
quantisation steps; the table of its class says how probable every symbol is. A sample's spread, the same for all
groups, moves it up or down the classes: samples differ, gradients by far. Tables are whole numbers made by decimal
arithmetic, so that two machines have the very same ones, whatever their floating point does. What the coder will need
is known beforehand, from the tables alone (`class_bits`, `symbol_bits`): a frame's length can be told inside jit,
before anything is coded.

The coder is `constriction`'s range coder (Bamler 2022, arXiv 2201.01741).
"""

import decimal
import functools
import math
from collections.abc import Iterator

import constriction
import numpy as np

Categorical = constriction.stream.model.Categorical

NUM_CLASSES = 26
"""Classes of a group, 0 for one that is all zeros. Class c > 0 has a deviation of 2**((c - CLASS_OF_ONE) / 2) steps."""

CLASS_OF_ONE = 9
"""The class whose deviation is one step."""

MOST = 2047
"""The largest magnitude of a symbol."""

MOST_DEVIATIONS, LEAST_LIMIT = 128, 15
"""A symbol of a class is at most so many deviations, or so large: short tables are quick to look up. A class that is
`MOST_SPREAD` below the widest has all symbols: what a sample's spread takes off must not cut its largest one."""

DEAD_ZONES = ("1", "1", "1", "1", "1", "1", "0.85", "0.75", "0.65", "0.6", *("0.55",) * 8, *("0.5",) * 8)
"""Half the width of the step around zero by class; the others are 1 wide: |x| in [n - 1 + zone, n + zone) is n. From
least distortion + 2 ln(2) / 12 bits for a Laplace distribution, the slope that a fine step has."""

MOST_SPREAD = 8
"""Spreads are whole numbers from -MOST_SPREAD to MOST_SPREAD, in classes."""

SPREAD_CLASS = 11
"""Whose table spreads are coded with."""

TOTAL = 1 << 20
"""Sum of a table's frequencies."""

COST_UNIT = 256
"""Costs are counted in 1 / COST_UNIT bit, rounded up."""

SLACK_BYTES = 12
"""What the coder may need beyond the costs, with padding to whole words."""

EMPTY = ("0.92", "0.78", "0.78", "0.78", "0.78", "0.57", "0.22", "0.08", *("0.03",) * 18)
"""Probability that a group is empty, by its neighbour's class: of cut tensors captured in training, at 32x to 512x."""

RISES, FALLS = "0.35", "0.5"
"""A class is that much less probable for every one that it is above, or below, its neighbour's."""

FIRST = 6
"""What classes are counted from where the neighbour is empty: the least whose dead zone is not the whole step."""

RARE = {**dict.fromkeys(range(1, FIRST - 1), "0.01"), FIRST - 1: "0.3"}
"""How much less probable those below that are."""


class CodeError(ValueError):
    """Coded bytes that no encoder makes."""


@functools.cache
def limits() -> np.ndarray:
    """Returns the largest magnitude of a symbol by class, int32 [NUM_CLASSES]."""
    squares = ((MOST_DEVIATIONS**2 << c) >> CLASS_OF_ONE for c in range(NUM_CLASSES))
    return np.asarray([min(max(math.isqrt(square), LEAST_LIMIT), MOST) for square in squares], np.int32)


@functools.cache
def symbol_tables() -> np.ndarray:
    """Returns frequencies, int64 [NUM_CLASSES, MOST + 1], of a magnitude with one sign, by class.

    A Laplace distribution of the class's standard deviation over the quantiser's steps. Up to the class's limit no
    symbol is impossible: a zero's frequency and twice those of the magnitudes from 1 on sum to `TOTAL`.
    """
    tables = np.zeros((NUM_CLASSES, MOST + 1), np.int64)
    with decimal.localcontext() as context:
        context.prec = 40
        for c, limit in enumerate(limits()):
            # deviation / sqrt(2), 2**((c - CLASS_OF_ONE) / 2 - 1 / 2)
            scale = decimal.Decimal(2) ** (decimal.Decimal(c - CLASS_OF_ONE - 1) / 2)
            shrink = (-1 / scale).exp()
            room = (-decimal.Decimal(DEAD_ZONES[c]) / scale).exp() * (1 - shrink) / 2 * (TOTAL - 2 * int(limit) - 1)
            for n in range(1, limit + 1):
                tables[c, n] = int(room) + 1
                room *= shrink
    tables[:, 0] = TOTAL - 2 * tables.sum(1)
    return tables


@functools.cache
def class_tables() -> np.ndarray:
    """Returns frequencies, int64 [NUM_CLASSES, NUM_CLASSES], of a group's class given its neighbour's."""
    tables = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    with decimal.localcontext() as context:
        context.prec = 40
        for given, empty in enumerate(map(decimal.Decimal, EMPTY)):
            centre = given or FIRST
            weights = [
                decimal.Decimal(RISES if c > centre else FALLS) ** abs(c - centre) * decimal.Decimal(RARE.get(c, "1"))
                for c in range(1, NUM_CLASSES)
            ]
            room = (1 - empty) * TOTAL / sum(weights)
            tables[given, 1:] = [max(int(weight * room), TOTAL >> 13) for weight in weights]
            tables[given, 0] = TOTAL - tables[given].sum()
    return tables


def _bits(frequencies: np.ndarray) -> np.ndarray:
    """Returns what every symbol costs, int32, in 1 / COST_UNIT bit, rounded up."""
    # Of a symbol's probability the coder leaves 1 - N / 2**24, in a table of N: 0.09 units of the widest one.
    return np.ceil(COST_UNIT * -np.log2(frequencies / TOTAL) + 0.1).astype(np.int32)


@functools.cache
def symbol_bits() -> np.ndarray:
    """Returns the cost of a symbol by class and magnitude, int32 [NUM_CLASSES, MOST + 1]; class 0 costs nothing."""
    costs = _bits(np.maximum(symbol_tables(), 1))
    costs[0] = 0
    return costs


@functools.cache
def class_bits() -> np.ndarray:
    """Returns the cost of a group's class given its neighbour's, int32 [NUM_CLASSES, NUM_CLASSES]."""
    return _bits(class_tables())


@functools.cache
def centroids() -> np.ndarray:
    """Returns the value of a symbol beyond its magnitude, in steps, float32 [NUM_CLASSES]: the mean within the step."""
    scale = 2.0 ** ((np.arange(NUM_CLASSES) - CLASS_OF_ONE - 1) / 2)
    mean = scale - 1 / np.expm1(np.minimum(1 / scale, 700.0))
    return (dead_zones() - 1 + mean).astype(np.float32)


@functools.cache
def dead_zones() -> np.ndarray:
    """Returns half the width of the step around zero, in steps, float32 [NUM_CLASSES]."""
    return np.asarray(DEAD_ZONES, np.float32)


def encode(classes: np.ndarray, spreads: np.ndarray, symbols: np.ndarray) -> bytes:
    """Returns the coded groups.

    Args:
        classes: uint8 [rows, columns], class of every group; its neighbour is the one above.
        spreads: int8 [n], by sample.
        symbols: int16 [rows, columns, n], within their classes' limits; those of class 0 are zeros and are not coded.
    """
    coder = constriction.stream.queue.RangeEncoder()
    family, tables = Categorical(perfect=False), _probabilities(class_tables())
    for row, above in zip(classes, _above(classes)):  # row by row: the tables of all groups at once would be large
        coder.encode(row.astype(np.int32), family, tables[above])
    coder.encode(spreads.astype(np.int32) + limits()[SPREAD_CLASS], _model(SPREAD_CLASS))
    coded = symbols[classes > 0].reshape(-1).astype(np.int32)
    for c, places in _by_class(classes, spreads):
        coder.encode(coded[places] + limits()[c], _model(c))
    return coder.get_compressed().astype("<u4").tobytes()


def decode(data: bytes, rows: int, columns: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (classes, spreads, symbols), the inverse of `encode`.

    Args:
        data: coded bytes, from anywhere; zeros may follow.
        rows: of groups.
        columns: of groups.
        n: symbols of a group.

    Raises:
        CodeError: no encoder makes such bytes.
    """
    words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
    coder, family, tables = (
        constriction.stream.queue.RangeDecoder(words),
        Categorical(perfect=False),
        _probabilities(class_tables()),
    )
    classes = np.zeros((rows, columns), np.uint8)
    symbols = np.zeros((rows, columns, n), np.int16)
    try:
        above = np.zeros(columns, np.int64)
        for row in range(rows):
            above = coder.decode(family, tables[above])
            classes[row] = above
        spreads = coder.decode(_model(SPREAD_CLASS), n) - limits()[SPREAD_CLASS]
        if np.any(np.abs(spreads) > MOST_SPREAD):
            raise ValueError(f"a spread beyond {MOST_SPREAD}")
        coded = np.zeros(np.count_nonzero(classes) * n, np.int16)
        for c, places in _by_class(classes, spreads):
            coded[places] = coder.decode(_model(c), len(places)) - limits()[c]
        symbols[classes > 0] = coded.reshape(-1, n)
    except (AssertionError, ValueError) as problem:
        raise CodeError(f"coded bytes are not what an encoder makes: {problem}") from problem
    return classes, spreads.astype(np.int8), symbols


def own_classes(classes, spreads):
    """Returns the class of every symbol, [rows, columns, n]; 0 in groups of class 0.

    Of NumPy's arrays or of JAX's: coder and count of the bits must not part.

    Args:
        classes: whole numbers [rows, columns], class of every group.
        spreads: of the same kind, wide enough for sums, [n], by sample.
    """
    own = (classes[..., None] + spreads[None, None]).clip(1, NUM_CLASSES - 1)
    return own * (classes > 0)[..., None].astype(own.dtype)


def _by_class(classes: np.ndarray, spreads: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields every class but 0 and where its symbols are among those of all groups that are not empty."""
    own = own_classes(classes[classes > 0].astype(np.int16)[None], spreads.astype(np.int16)).reshape(-1)
    order = np.argsort(own, kind="stable")
    ends = np.cumsum(np.bincount(own, minlength=NUM_CLASSES))
    for c, places in enumerate(np.split(order, ends[:-1])):
        if len(places):
            yield c, places


def _above(classes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(classes[:1]), classes[:-1]])


@functools.cache
def _model(c: int):
    table = symbol_tables()[c, : limits()[c] + 1]
    return Categorical(_probabilities(np.concatenate([table[:0:-1], table])), perfect=False)


def _probabilities(frequencies: np.ndarray) -> np.ndarray:
    """Returns them as float64: a whole number over a power of two is exact."""
    return frequencies / TOTAL
