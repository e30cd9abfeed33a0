"""Envelopes: a msgpack map of a few known fields around opaque frames, checked before anything is used.

msgpack and not protobuf: it is a dependency already, needs no generated code, and is the faster one at these sizes.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgpack

PROTOCOL = 4
"""Version of the messages; both parties must have the same."""

MOST_FIELDS, MOST_ENTRIES = 32, 4096
"""Of a map and of a list: what a few bytes unpack to is bounded."""

Schema = Mapping[str, type | tuple[type, ...]]
"""The fields of a message and the types that each may have."""


class EnvelopeError(ValueError):
    """A message is not what was expected. It says what was found and what was expected."""


def pack(fields: Mapping[str, Any]) -> bytes:
    """Returns the bytes of a message."""
    return msgpack.packb(dict(fields))


def unpack(data: bytes) -> dict[str, Any]:
    """Returns the fields of a message from anywhere.

    Raises:
        EnvelopeError: the bytes are no such message.
    """
    try:
        fields = msgpack.unpackb(
            data, strict_map_key=True, max_ext_len=0, max_map_len=MOST_FIELDS, max_array_len=MOST_ENTRIES
        )
    except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError) as problem:
        raise EnvelopeError(f"message of {len(data)} bytes is not msgpack: {problem}") from problem
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise EnvelopeError(f"message is {type(fields).__name__}; expected a map by field names")
    return fields


def check(fields: Mapping[str, Any], schema: Schema, what: str) -> None:
    """Raises an `EnvelopeError` unless the fields are exactly those of the schema, each of its type, numbers finite."""
    if set(fields) != set(schema):
        raise EnvelopeError(f"{what} has the fields {sorted(fields)!r:.300}; expected {sorted(schema)}")
    for name, types in schema.items():
        value = fields[name]
        types = types if isinstance(types, tuple) else (types,)
        if type(value) not in types or (isinstance(value, float) and not math.isfinite(value)):
            names = " or ".join(kind.__name__ for kind in types)
            raise EnvelopeError(f"{what}: {name} is {value!r:.80}; expected {names}")
