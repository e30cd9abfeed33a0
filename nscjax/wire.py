"""Payload to frame and back: real bytes, trimmed to the rank, checked before anything is allocated.

The layout is `nscjax.layout`'s; numbers are little-endian, as on every machine that JAX runs on. A frame that cannot
be decoded raises `WireError`, whatever the bytes are.
"""

import dataclasses
import math
import zlib
from typing import Any

import jax
import msgpack
import numpy as np

from nscjax import layout
from nscjax.types import PyTree

MAX_BYTES = 1 << 28
"""The largest tensor or frame, in bytes, that `decode` makes room for by default."""


MAX_AXES = 8
"""The most axes, dtype code included, of a field that `decode` takes from a frame's own header."""


class WireError(ValueError):
    """A frame cannot be decoded. The message names what was found and what was expected."""


def encode(payload: PyTree) -> bytes:
    """Returns the frame of `payload`; its length is `layout.num_bytes(payload)`.

    Args:
        payload: a registered payload of concrete arrays (not inside jit), on host or device.
    """
    head = layout.header(payload)
    parts = [layout.MAGIC, bytes([layout.VERSION, type(payload).tag]), len(head).to_bytes(2, "little"), head]
    values = jax.device_get(payload)
    for field in layout.array_fields(type(payload)):
        value = np.asarray(getattr(values, field.name))
        count = int(getattr(values, field.metadata["by"])) if "by" in field.metadata else 0
        if "coder" in field.metadata:
            parts.append(_coded(field.metadata["coder"], value, count))
        elif "by" in field.metadata:
            parts.append(value[: field.metadata["rows"](count)].tobytes())
        else:
            parts.append(value.tobytes())
    body = b"".join(parts)
    return body + zlib.crc32(body).to_bytes(layout.CHECKSUM_BYTES, "little")


def _coded(coder: layout.Coder, value: np.ndarray, num_bytes: int) -> bytes:
    """Returns the coded array, in exactly so many bytes."""
    data = coder.encode(value) if num_bytes else b""
    if len(data) > num_bytes:
        raise AssertionError(f"{len(data)} coded bytes where {num_bytes} were counted")
    return data.ljust(num_bytes, b"\0")


def decode(frame: bytes, like: PyTree = None, max_bytes: int = MAX_BYTES) -> PyTree:
    """Returns the payload of `frame`, its ranked arrays padded with zeros; arrays are numpy's.

    Args:
        frame: bytes from anywhere.
        like: a payload (of arrays or `jax.ShapeDtypeStruct`s) whose type, shapes and metadata the frame must have:
            what both ends agreed on. Without it the frame's own header is believed, as far as `max_bytes` goes.
        max_bytes: the largest frame, padded array and decompressed tensor allowed, in bytes.

    Raises:
        WireError: the frame is no bytes, truncated, damaged, of another kind or version, too large, or holds non-finite
            numbers.
    """
    cls, head, body = _open(frame, max_bytes)
    if like is not None:
        if cls is not type(like) or head != layout.header(like):
            raise WireError(f"frame is {_describe(cls, head)}; expected {_describe(type(like), layout.header(like))}")
        template = like
    else:
        template = _template(cls, head, max_bytes)
    return _read_arrays(template, body)


def _decoded(coder: layout.Coder, name: str, data: bytes, num_bytes: int, spec: jax.ShapeDtypeStruct) -> np.ndarray:
    """Returns the array that so many coded bytes stand for."""
    if len(data) < num_bytes:
        raise WireError(f"frame's field {name} takes {num_bytes} bytes; the body has {len(data)} left")
    if not num_bytes:
        return np.zeros(spec.shape, spec.dtype)
    try:
        value = coder.decode(data, spec.shape)
        is_whole = _coded(coder, value, num_bytes) == data
    except (ValueError, AssertionError) as problem:
        raise WireError(f"frame's field {name}: {problem!s:.200}") from problem
    if not is_whole:  # a frame that decodes is one that `encode` makes
        raise WireError(f"frame's field {name} holds bytes that no encoder makes")
    return value


def _open(frame: bytes, max_bytes: int) -> tuple[type, bytes, bytes]:
    """Returns the payload class, the header and the body of a frame whose prefix and checksum are right."""
    if not isinstance(frame, bytes | bytearray | memoryview):
        raise WireError(f"frame is of type {type(frame).__name__}; expected bytes")
    least = layout.PREFIX_BYTES + layout.CHECKSUM_BYTES
    if not least <= len(frame) <= max_bytes:
        raise WireError(f"frame has {len(frame)} bytes; allowed: {least} to {max_bytes}")
    frame = bytes(frame)
    if frame[:2] != layout.MAGIC:
        raise WireError(f"frame begins with {frame[:2]!r}; expected {layout.MAGIC!r}")
    if frame[2] != layout.VERSION:
        raise WireError(f"frame has version {frame[2]}; expected {layout.VERSION}")
    stored = int.from_bytes(frame[-layout.CHECKSUM_BYTES :], "little")
    computed = zlib.crc32(frame[: -layout.CHECKSUM_BYTES])
    if stored != computed:
        raise WireError(f"frame's checksum is {stored:#010x}; its bytes have {computed:#010x}: damaged or cut short")
    if frame[3] not in layout.PAYLOADS:
        raise WireError(f"frame has payload tag {frame[3]}; known: {sorted(layout.PAYLOADS)}")
    end = layout.PREFIX_BYTES + int.from_bytes(frame[4:6], "little")
    if end > len(frame) - layout.CHECKSUM_BYTES:
        raise WireError(f"frame's header ends at byte {end}; the frame has {len(frame)}")
    return layout.PAYLOADS[frame[3]], frame[layout.PREFIX_BYTES : end], frame[end : -layout.CHECKSUM_BYTES]


def _entries(cls: type, head: bytes) -> list[Any]:
    """Returns the header's msgpack list, of the length that the class has."""
    expected = len(dataclasses.fields(cls))
    try:
        entries = msgpack.unpackb(head, use_list=False, strict_map_key=True)
    except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError) as problem:
        raise WireError(f"frame's header is not msgpack: {problem}") from problem
    if not isinstance(entries, tuple) or len(entries) != expected:
        raise WireError(f"frame's header holds {entries!r:.100}; expected a list of {expected} entries")
    return list(entries)


def _describe(cls: type, head: bytes) -> str:
    return f"{cls.__name__}{tuple(_entries(cls, head))}"[:200]


def _template(cls: type, head: bytes, max_bytes: int) -> PyTree:
    """Returns a payload of `jax.ShapeDtypeStruct`s built from a frame's own header, every entry checked."""
    entries = _entries(cls, head)
    values = {field.name: entry for field, entry in zip(layout.static_fields(cls), entries)}
    total_bytes = 0
    for field, entry in zip(layout.array_fields(cls), entries[len(values) :]):
        if not (isinstance(entry, tuple) and 0 < len(entry) <= MAX_AXES and all(_is_size(item) for item in entry)):
            raise WireError(f"frame's field {field.name} has layout {entry!r:.100}; expected (dtype, *shape)")
        code, *shape = entry
        if code >= len(layout.DTYPES):
            raise WireError(f"frame's field {field.name} has dtype code {code}; known: 0 to {len(layout.DTYPES) - 1}")
        dtype = jax.numpy.dtype(layout.DTYPES[code])
        # A size of 0 does not make room for the others: numpy refuses their product all the same.
        total_bytes += math.prod(size or 1 for size in shape) * dtype.itemsize
        if total_bytes > max_bytes:
            raise WireError(
                f"frame's field {field.name} has shape {tuple(shape)!r:.100} of {dtype}; allowed: {max_bytes} bytes"
            )
        values[field.name] = jax.ShapeDtypeStruct(tuple(shape), dtype)
    template = cls(**values)
    problem = template.problem(max_bytes)
    if problem:
        raise WireError(f"frame is not a {cls.__name__}: {problem:.700}")
    return template


def _is_size(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 40


def _read_arrays(template: PyTree, body: bytes) -> PyTree:
    """Returns `template` with its arrays read from `body`, which must have exactly their bytes."""
    arrays: dict[str, np.ndarray] = {}
    position, most = 0, layout.most(template)
    for field, spec in layout.array_specs(template):
        coder, is_ranked, shape = field.metadata.get("coder"), "rows" in field.metadata, spec.shape
        if is_ranked:
            shape = (field.metadata["rows"](int(arrays[field.metadata["by"]])), *shape[1:])
        dtype = np.dtype(spec.dtype)
        if coder:
            end = position + int(arrays[field.metadata["by"]])
            arrays[field.name] = _decoded(coder, field.name, body[position:end], end - position, spec)
            position = end
            continue
        end = position + math.prod(shape) * dtype.itemsize
        if end > len(body):
            raise WireError(f"frame's field {field.name} ends at byte {end} of the body; the body has {len(body)}")
        value = np.frombuffer(body[position:end], dtype).reshape(shape)
        with np.errstate(invalid="ignore"):  # signalling NaNs are found as well as quiet ones, and as silently
            is_broken = jax.dtypes.issubdtype(dtype, np.floating) and not np.all(np.isfinite(value))
        if is_broken:
            raise WireError(f"frame's field {field.name} holds non-finite numbers")
        top = most.get(field.name)
        if top is not None and not 0 <= int(value) <= top:
            raise WireError(f"frame's {field.name} is {int(value)}; allowed: 0 to {top}")
        if is_ranked:
            value = np.concatenate([value, np.zeros((spec.shape[0] - shape[0], *spec.shape[1:]), spec.dtype)])
        arrays[field.name], position = value, end
    if position != len(body):
        raise WireError(f"frame's body has {len(body)} bytes; its fields take {position}")
    return dataclasses.replace(template, **arrays)
