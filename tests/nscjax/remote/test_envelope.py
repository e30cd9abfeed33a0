import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nscjax.remote import EnvelopeError, envelope

FIELDS = {"step": 3, "frame": b"\x00\xff", "loss": 0.5, "name": "a"}
SCHEMA = {"step": int, "frame": bytes, "loss": float, "name": str}


def test_a_message_comes_back():
    fields = envelope.unpack(envelope.pack(FIELDS))
    envelope.check(fields, SCHEMA, "message")
    assert fields == FIELDS


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data):
    with contextlib.suppress(EnvelopeError):
        assert isinstance(envelope.unpack(data), dict)


@given(st.integers(0, 60), st.integers(0, 255))
def test_a_changed_byte_is_a_message_or_refused(place, byte):
    data = bytearray(envelope.pack(FIELDS))
    data[place % len(data)] = byte
    with contextlib.suppress(EnvelopeError):
        envelope.check(envelope.unpack(bytes(data)), SCHEMA, "message")


@pytest.mark.parametrize("changes", [
    {"step": True}, {"step": 3.0}, {"step": "3"}, {"frame": "text"}, {"loss": math.nan}, {"loss": math.inf},
    {"loss": 1}, {"more": 1},
])  # fmt: skip
def test_other_fields_and_types_are_refused(changes):
    with pytest.raises(EnvelopeError, match="expected"):
        envelope.check(FIELDS | changes, SCHEMA, "message")


def test_a_missing_field_is_refused():
    with pytest.raises(EnvelopeError, match="expected"):
        envelope.check({"step": 1}, SCHEMA, "message")
