"""The layout of a frame: what a payload is on the wire, and hence how many bytes it takes.

A payload is a frozen dataclass of arrays and static metadata, declared with `payload`, `array`, `ranked` and `static`.
The layout is a fact about the class, so that the length of a frame is known inside jit (`num_bytes`) without making it;
`nscjax.wire` only writes and reads what is laid out here:

    magic "NS" | version u8 | tag u8 | header length u16 | header | arrays, little-endian, in field order | crc32 u32

The header is a msgpack list: every static field, then (dtype code, *shape) of every array. A field made by `ranked`
has the rank as its leading axis; on the device it is padded to the largest rank, on the wire it is cut to the `rank`
of the payload, which is an ordinary int32 field that stands before it. What the rank counts is the method's affair:
components, bit planes, entries a sample; a field made by `doubling` has 2**rank rows, as a codebook does. A payload
that counts several things names the count by which a field is cut. A field made by `coded` crosses entropy-coded, in as
many bytes as its count says: what the coder needs is bounded on the device, and the rest is zeros. With every count 0
only the header and the fixed fields are left.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, dataclass_transform

import jax
import jax.numpy as jnp
import msgpack
import numpy as np

from nscjax import check
from nscjax.types import Array, PyTree, Shape

MAGIC = b"NS"
VERSION = 1
PREFIX_BYTES = len(MAGIC) + 1 + 1 + 2
CHECKSUM_BYTES = 4
MAX_BYTES = 2**31 - 1
"""The largest budget of a frame: bytes are counted in int32."""

DTYPES = (
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "float16",
    "bfloat16",
    "float32",
    "float64",
)
"""The dtypes that may cross; a dtype's position is its code in the header. Append only."""


def dtype_code(dtype: Any) -> int:
    """Returns a dtype's code in frames; raises an `InputError` for one that may not cross."""
    return DTYPES.index(check.one_of("dtype of what crosses", str(dtype), DTYPES))


PAYLOADS: dict[int, type] = {}
"""Payload classes by tag. A tag is for ever: golden frames hold it."""


def array() -> Any:
    """Returns a dataclass field for an array that crosses whole."""
    return dataclasses.field(metadata={})


def ranked(by: str = "rank") -> Any:
    """Returns a dataclass field for an array whose leading axis is cut on the wire to a count, the payload's rank.

    Args:
        by: the int32 scalar field that holds the count; it stands before this one.
    """
    return dataclasses.field(metadata={"by": by, "rows": lambda rank: rank, "top": lambda spec: spec.shape[0]})


def doubling() -> Any:
    """Returns a dataclass field for an array cut to 2**rank rows on the wire, to none at rank 0."""
    return dataclasses.field(
        metadata={
            "by": "rank",
            "rows": lambda rank: (1 << rank) * (rank > 0),
            "top": lambda spec: max(spec.shape[0], 1).bit_length() - 1,
        }
    )


class Coder(NamedTuple):
    """An entropy coder of one array, on the host.

    Attributes:
        encode: array -> bytes.
        decode: `(bytes from anywhere, shape) -> array`, of bytes that zeros may follow; raises a `ValueError` for what
            no encoder makes.
    """

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, Shape], np.ndarray]


def coded(by: str, coder: Coder) -> Any:
    """Returns a dataclass field for an array that crosses entropy-coded; with a count of 0 it is zeros.

    Args:
        by: the int32 scalar field that holds how many bytes it takes, at most `most_coded`; it stands before this one.
        coder: that makes no more bytes than that of what the method sends.
    """
    return dataclasses.field(metadata={"by": by, "coder": coder, "top": most_coded})


def most_coded(spec: jax.ShapeDtypeStruct | Array) -> int:
    """Returns the most bytes of a coded field: those of the array itself, and a coder's own."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize + 64


def static() -> Any:
    """Returns a dataclass field for metadata known when tracing: an int, a float, a string or a tuple of ints."""
    return dataclasses.field(metadata={"static": True})


@dataclass_transform(field_specifiers=(array, ranked, doubling, coded, static), frozen_default=True)
def payload(tag: int) -> Callable[[type], type]:
    """Returns a class decorator that makes a frozen dataclass a pytree and registers it under `tag` (0 to 255)."""

    def register(cls: type) -> type:
        if tag in PAYLOADS:
            raise ValueError(f"payload tag {tag} is taken by {PAYLOADS[tag].__name__}; take a free one")
        cls = dataclasses.dataclass(frozen=True)(cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        jax.tree_util.register_dataclass(
            cls,
            data_fields=[field.name for field in fields if not field.metadata.get("static")],
            meta_fields=[field.name for field in fields if field.metadata.get("static")],
        )
        PAYLOADS[tag] = cls
        cls.tag = tag  # type: ignore[attr-defined]
        return cls

    return register


def static_fields(cls: type) -> list[dataclasses.Field]:
    """Returns the metadata fields of a payload class, in header order."""
    return [field for field in dataclasses.fields(cls) if field.metadata.get("static")]


def array_fields(cls: type) -> list[dataclasses.Field]:
    """Returns the array fields of a payload class, in body order."""
    return [field for field in dataclasses.fields(cls) if not field.metadata.get("static")]


def array_specs(payload: PyTree) -> Iterator[tuple[dataclasses.Field, jax.ShapeDtypeStruct]]:
    """Yields every array field of `payload` with its padded shape and dtype."""
    for field in array_fields(type(payload)):
        value = getattr(payload, field.name)
        yield field, jax.ShapeDtypeStruct(value.shape, value.dtype)


def header(payload: PyTree) -> bytes:
    """Returns the msgpack header of `payload`: it depends on shapes, dtypes and metadata alone, never on values."""
    entries = [getattr(payload, field.name) for field in static_fields(type(payload))]
    entries += [[dtype_code(spec.dtype), *spec.shape] for _, spec in array_specs(payload)]
    return msgpack.packb(entries)


def most(payload: PyTree) -> dict[str, int]:
    """Returns the largest value of every count (mostly of `rank` alone): the padded arrays have room for no more."""
    tops: dict[str, int] = {}
    for field, spec in array_specs(payload):
        if "by" in field.metadata:
            by, top = field.metadata["by"], field.metadata["top"](spec)
            tops[by] = min(top, tops.get(by, top))
    return tops


def tensor_problem(payload: PyTree, max_bytes: int) -> str | None:
    """Returns what is wrong with the static fields `shape` and `dtype` of a payload from a frame's own header, or None.

    Args:
        payload: with the cut tensor's shape, and its dtype's code in `DTYPES`.
        max_bytes: the largest tensor allowed, in float32.
    """
    shape, dtype = payload.shape, payload.dtype
    if not (isinstance(shape, tuple) and shape and all(type(size) is int and size > 0 for size in shape)):
        return f"its shape is {shape!r}"
    # 9.0 is a position as well, but it is not what `encode` writes.
    if type(dtype) is not int or dtype not in range(len(DTYPES)) or not jnp.issubdtype(DTYPES[dtype], jnp.floating):
        return f"its dtype code is {dtype!r}"
    if 4 * math.prod(shape) > max_bytes:
        return f"its tensor has {4 * math.prod(shape)} bytes; allowed: {max_bytes}"
    return None


def tensor_spec(payload: PyTree) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of the cut tensor that a payload with static fields `shape` and `dtype` stands for."""
    return jax.ShapeDtypeStruct(payload.shape, DTYPES[payload.dtype])


def arrays_problem(payload: PyTree, expected: PyTree) -> str | None:
    """Returns how the arrays of a payload from a frame's own header differ from the expected layout, or None."""
    return None if payload == expected else f"its arrays are {payload}; expected {expected}"


def frame_bytes(payload: PyTree, rank: int = 0, **counts: int) -> int:
    """Returns the length in bytes of the frame of a payload like this one; known when tracing.

    Args:
        payload: a payload of arrays or of `jax.ShapeDtypeStruct`s: only its layout counts.
        rank: how many rows of the fields ranked by `rank` cross.
        **counts: how many of those ranked by another count; 0 by default.
    """
    by_count, counts = _bytes_by_count(payload), {"rank": rank} | counts
    length = _fixed_bytes(payload) + sum(counts.pop(by, 0) for by in _coded_counts(payload))
    return length + sum(int(by_count[by][n]) for by, n in counts.items() if n)


def num_bytes(payload: PyTree) -> Array:
    """Returns the exact length in bytes of the frame of `payload`, an int32 scalar; may be traced.

    Args:
        payload: a payload; of its arrays only the counts need a value.
    """
    length = jnp.asarray(_fixed_bytes(payload), jnp.int32)
    for by, table in _bytes_by_count(payload).items():
        length = length + jnp.asarray(table[table <= MAX_BYTES].astype(np.int32))[getattr(payload, by)]
    return length + sum(getattr(payload, by) for by in _coded_counts(payload))


def affordable_rank(payload: PyTree, budget_bytes: Array | int) -> Array:
    """Returns the largest rank whose frame fits `budget_bytes`, an int32 scalar >= 0; may be traced.

    Args:
        payload: a payload that counts nothing but its rank, of arrays or of `jax.ShapeDtypeStruct`s: only its layout
            counts.
        budget_bytes: the largest frame allowed, header included.
    """
    (table,) = _bytes_by_count(payload).values()
    lengths = _fixed_bytes(payload) + table
    lengths = lengths[lengths <= MAX_BYTES].astype(np.int32)
    is_affordable = jnp.asarray(lengths) <= within_int32(budget_bytes)
    return jnp.maximum(jnp.sum(is_affordable, dtype=jnp.int32) - 1, 0)


def within_int32(budget_bytes: Array | int) -> Array:
    """Returns a budget as an int32 scalar, cut to `MAX_BYTES`; may be traced."""
    budget_bytes = min(budget_bytes, MAX_BYTES) if isinstance(budget_bytes, numbers.Integral) else budget_bytes
    return jnp.asarray(budget_bytes, jnp.int32)


def _fixed_bytes(payload: PyTree) -> int:
    """Returns the length of the frame when every count is 0."""
    whole = [spec for field, spec in array_specs(payload) if "by" not in field.metadata]
    arrays = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in whole)
    return PREFIX_BYTES + len(header(payload)) + CHECKSUM_BYTES + arrays


def _coded_counts(payload: PyTree) -> list[str]:
    """Returns the counts that are themselves the bytes of a coded field."""
    return [field.metadata["by"] for field in array_fields(type(payload)) if "coder" in field.metadata]


def _bytes_by_count(payload: PyTree) -> dict[str, np.ndarray]:
    """Returns, for every other count, the bytes of all fields ranked by it when it is 0, 1, ..., its largest value."""
    coded = _coded_counts(payload)
    tables = {by: np.zeros(top + 1, np.int64) for by, top in most(payload).items() if by not in coded}
    for field, spec in array_specs(payload):
        if field.metadata.get("by") in tables:
            table = tables[field.metadata["by"]]
            row_bytes = math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
            table += field.metadata["rows"](np.arange(len(table))) * row_bytes
    return tables
