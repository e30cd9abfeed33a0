"""Entropy coding of quantised coefficients: integer tables that both ends share, a range coder from a library.

Coefficients come in groups of equal statistics. A group's class says how wide it is, in quantisation steps; the table
of its class says how probable every symbol is. Tables are whole numbers made by decimal arithmetic, so that two
machines have the very same ones, whatever their floating point does. What the coder will need is known beforehand, from
the tables alone (`class_bits`, `symbol_bits`): a frame's length can be told inside jit, before anything is coded.

The coder is `constriction`'s range coder (Bamler 2022, arXiv 2201.01741).
"""

import decimal
import functools

import constriction
import numpy as np

Categorical = constriction.stream.model.Categorical

NUM_CLASSES = 18
"""Classes of a group, 0 for one that is all zeros. Class c > 0 has a deviation of 2**((c - CLASS_OF_ONE) / 2) steps."""

CLASS_OF_ONE = 9
"""The class whose deviation is one step."""

MOST = 127
"""The largest magnitude of a symbol."""

DEAD_ZONE = 0.6
"""Half the width of the step around zero; the others are 1 wide, as in |x| in [n - 1 + DEAD_ZONE, n + DEAD_ZONE)."""

TOTAL = 1 << 16
"""Sum of a table's frequencies."""

COST_UNIT = 256
"""Costs are counted in 1 / COST_UNIT bit, rounded up."""

SLACK_BYTES = 12
"""What the coder may need beyond the costs, with padding to whole words."""

KEEPS_CLASS = 0.55
"""Probability that a group has the class of its neighbour; those farther off are each `FALLS_OFF` as probable as the
next nearer."""

FALLS_OFF = 0.4


class CodeError(ValueError):
    """Coded bytes that no encoder makes."""


@functools.cache
def symbol_tables() -> np.ndarray:
    """Returns frequencies, int64 [NUM_CLASSES, 2 MOST + 1], of the symbols -MOST to MOST in every class.

    A Laplace distribution of the class's standard deviation over the quantiser's steps; no symbol is impossible.
    """
    tables = np.ones((NUM_CLASSES, 2 * MOST + 1), np.int64)
    with decimal.localcontext() as context:
        context.prec = 40
        for c in range(1, NUM_CLASSES):
            # deviation / sqrt(2), 2**((c - CLASS_OF_ONE) / 2 - 1 / 2)
            scale = decimal.Decimal(2) ** (decimal.Decimal(c - CLASS_OF_ONE - 1) / 2)
            edges = [(-(decimal.Decimal(str(DEAD_ZONE)) + n) / scale).exp() for n in range(MOST + 1)]
            for n in range(1, MOST + 1):
                frequency = max(int((edges[n - 1] - edges[n]) / 2 * (TOTAL - 2 * MOST - 1)) + 1, 1)
                tables[c, MOST + n] = tables[c, MOST - n] = frequency
    tables[:, MOST] = 0
    tables[:, MOST] = TOTAL - tables.sum(1)
    return tables


@functools.cache
def class_tables() -> np.ndarray:
    """Returns frequencies, int64 [NUM_CLASSES, NUM_CLASSES], of a group's class given its neighbour's."""
    tables = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    with decimal.localcontext() as context:
        context.prec = 40
        falls_off = decimal.Decimal(str(FALLS_OFF))
        for given in range(NUM_CLASSES):
            weights = [falls_off ** abs(c - given) if c != given else decimal.Decimal(0) for c in range(NUM_CLASSES)]
            room = (1 - decimal.Decimal(str(KEEPS_CLASS))) * TOTAL / sum(weights)
            tables[given] = [max(int(weight * room), 8) for weight in weights]
            tables[given, given] = TOTAL - tables[given].sum() + tables[given, given]
    return tables


def _bits(frequencies: np.ndarray) -> np.ndarray:
    """Returns what every symbol costs, int32, in 1 / COST_UNIT bit, rounded up."""
    # The coder's own rounding of probabilities to 24 bits is far within the rounding up.
    return np.ceil(COST_UNIT * -np.log2(frequencies / TOTAL) + 0.02).astype(np.int32)


@functools.cache
def symbol_bits() -> np.ndarray:
    """Returns the cost of a symbol by class and magnitude, int32 [NUM_CLASSES, MOST + 1]; class 0 costs nothing."""
    costs = _bits(symbol_tables()[:, MOST:])
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
    return (DEAD_ZONE - 1 + mean).astype(np.float32)


def encode(classes: np.ndarray, symbols: np.ndarray) -> bytes:
    """Returns the coded groups.

    Args:
        classes: uint8 [rows, columns], class of every group; its neighbour is the one above.
        symbols: int8 [rows, columns, n]; those of class 0 are zeros and are not coded.
    """
    coder = constriction.stream.queue.RangeEncoder()
    family, tables = Categorical(perfect=False), _probabilities(class_tables())
    for row, above in zip(classes, _above(classes)):  # row by row: the tables of all groups at once would be large
        coder.encode(row.astype(np.int32), family, tables[above])
    for c in range(1, NUM_CLASSES):
        chosen = symbols[classes == c]
        if chosen.size:
            coder.encode(chosen.reshape(-1).astype(np.int32) + MOST, _model(c))
    return coder.get_compressed().astype("<u4").tobytes()


def decode(data: bytes, rows: int, columns: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (classes, symbols), the inverse of `encode`.

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
    symbols = np.zeros((rows, columns, n), np.int8)
    try:
        above = np.zeros(columns, np.int64)
        for row in range(rows):
            above = coder.decode(family, tables[above])
            classes[row] = above
        for c in range(1, NUM_CLASSES):
            is_chosen = classes == c
            if count := int(is_chosen.sum()) * n:
                symbols[is_chosen] = (coder.decode(_model(c), count) - MOST).reshape(-1, n)
    except (AssertionError, ValueError) as problem:
        raise CodeError(f"coded bytes are not what an encoder makes: {problem}") from problem
    return classes, symbols


def _above(classes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(classes[:1]), classes[:-1]])


@functools.cache
def _model(c: int):
    return Categorical(_probabilities(symbol_tables()[c]), perfect=False)


def _probabilities(frequencies: np.ndarray) -> np.ndarray:
    """Returns them as float64: a whole number over a power of two is exact."""
    return frequencies / TOTAL
