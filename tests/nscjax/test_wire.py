import dataclasses
import struct
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nscjax import compress, layout, wire
from nscjax.compress.base import Dense
from tests.nscjax.tensors import sealed

FLOAT32, INT32, UINT8 = (layout.DTYPES.index(name) for name in ("float32", "int32", "uint8"))
DENSE, LOW_RANK = Dense.tag, compress.LowRank.tag
LONGEST_MESSAGE = 1000


def low_rank(rank=2, seed=0):
    """A payload of a [4, 6] matrix with room for 3 components of 4 bits: 3 planes a left row, 2 a right one."""
    rng = np.random.default_rng(seed)
    is_sent = np.arange(3) < rank
    left, right = (rng.integers(0, 256, (12, 1), np.uint8) for _ in range(2))
    return compress.LowRank(
        rank=np.int32(rank),
        left_planes=np.int32(3 * rank),
        right_planes=np.int32(2 * rank),
        scale=np.float32(rng.normal(size=3)) * is_sent,
        bits=np.uint8([2, 2, 2]) * is_sent,
        left=left * (np.arange(12) < 3 * rank)[:, None],
        right=right * (np.arange(12) < 2 * rank)[:, None],
        shape=(4, 6),
        dtype=FLOAT32,
        view="B,D",
        most_bits=4,
    )


COUNTS = [[INT32]] * 3
LOW_RANK_HEADER = [
    *([4, 6], FLOAT32, "B,D", 4),
    *(*COUNTS, [FLOAT32, 3], [UINT8, 3], [UINT8, 12, 1], [UINT8, 12, 1]),
]


def framed(header, body=b"", tag=LOW_RANK, version=layout.VERSION, magic=b"NS"):
    """Returns a frame with any header, a list for msgpack or raw bytes, and a right checksum."""
    head = header if isinstance(header, bytes) else msgpack.packb(header)
    return sealed(magic + struct.pack("<BBH", version, tag, len(head)) + head + body)


def assert_same(payload, other):
    assert jax.tree.structure(payload) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(payload), jax.tree.leaves(other)):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def assert_decoded_or_refused(frame, **options):
    """Anything but a payload or a `WireError` of readable length is a failure."""
    try:
        payload = wire.decode(frame, **options)
    except wire.WireError as problem:
        message = str(problem)
    else:
        # What was taken can be used: its own layout says how long its frame is.
        assert len(wire.encode(payload)) == layout.num_bytes(payload)
        return
    assert 0 < len(message) < LONGEST_MESSAGE


# Layout


def test_a_frame_is_prefix_header_arrays_and_checksum():
    payload = low_rank(rank=2)
    head = msgpack.packb(LOW_RANK_HEADER)
    body = struct.pack("<iii", 2, 6, 4) + payload.scale[:2].astype("<f4").tobytes() + payload.bits[:2].tobytes()
    body += payload.left[:6].tobytes() + payload.right[:4].tobytes()
    expected = sealed(b"NS" + bytes([1, LOW_RANK]) + struct.pack("<H", len(head)) + head + body)
    assert wire.encode(payload) == expected


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_only_the_components_up_to_the_rank_cross(rank):
    frame = wire.encode(low_rank(rank))
    assert len(frame) == layout.num_bytes(low_rank(rank)) == len(wire.encode(low_rank(0))) + rank * (4 + 1 + 3 + 2)


def test_what_was_past_the_rank_comes_back_as_zeros():
    spoilt = dataclasses.replace(low_rank(rank=1), scale=np.float32([5, np.nan, 7]))
    restored = wire.decode(wire.encode(spoilt))
    np.testing.assert_array_equal(restored.scale, [5, 0, 0])
    assert restored.left.shape == (12, 1)


def test_encode_takes_arrays_on_the_device():
    assert wire.encode(jax.tree.map(jnp.asarray, low_rank())) == wire.encode(low_rank())


def test_encode_takes_arrays_that_are_not_contiguous():
    values = np.arange(12, dtype=np.int32).reshape(3, 4).T
    assert_same(wire.decode(wire.encode(Dense(values=values))), Dense(values=np.ascontiguousarray(values)))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_decode_takes_any_kind_of_bytes(kind):
    assert_same(wire.decode(kind(wire.encode(low_rank()))), low_rank())


@pytest.mark.parametrize("frame", [None, "NS", 7, [78, 83], np.zeros(64, np.uint8)])
def test_what_is_no_bytes_is_told(frame):
    with pytest.raises(wire.WireError, match=f"frame is of type {type(frame).__name__}; expected bytes"):
        wire.decode(frame)


# Round trips


@st.composite
def dense_payloads(draw):
    dtype = np.dtype(draw(st.sampled_from(layout.DTYPES[:8] + layout.DTYPES[9:])))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return Dense(values=draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **finite))))


@given(dense_payloads())
def test_a_dense_payload_is_what_was_encoded(payload):
    frame = wire.encode(payload)
    assert_same(wire.decode(frame), payload)
    assert_same(wire.decode(frame, like=payload), payload)


def test_bfloat16_is_what_was_encoded():
    payload = Dense(values=np.asarray(jnp.linspace(-3, 3, 10).astype(jnp.bfloat16)))
    assert_same(wire.decode(wire.encode(payload)), payload)


def test_the_largest_float64_is_what_was_encoded():
    payload = Dense(values=np.float64([1e300, -1e300]))
    assert_same(wire.decode(wire.encode(payload)), payload)


@given(st.integers(0, 3), st.integers(0, 1000))
def test_a_low_rank_payload_is_what_was_encoded(rank, seed):
    payload = low_rank(rank, seed)
    frame = wire.encode(payload)
    assert_same(wire.decode(frame), payload)
    assert_same(wire.decode(frame, like=payload), payload)


def test_like_may_be_shapes_alone():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), low_rank())
    assert_same(wire.decode(wire.encode(low_rank()), like=shapes), low_rank())


# Refusals: what was found and what was expected


def refused(frame, **options):
    with pytest.raises(wire.WireError) as caught:
        wire.decode(frame, **options)
    return str(caught.value)


def test_a_frame_too_short_or_too_long_is_refused():
    frame = wire.encode(low_rank())
    assert refused(b"NS") == f"frame has 2 bytes; allowed: 10 to {1 << 28}"
    assert refused(frame, max_bytes=len(frame) - 1) == f"frame has {len(frame)} bytes; allowed: 10 to {len(frame) - 1}"


def test_foreign_bytes_are_refused():
    assert refused(framed([], magic=b"PK")) == "frame begins with b'PK'; expected b'NS'"


def test_another_version_is_refused():
    assert refused(framed([], version=7)) == "frame has version 7; expected 1"


def test_an_unknown_payload_is_refused():
    assert refused(framed([], tag=200)) == f"frame has payload tag 200; known: {sorted(layout.PAYLOADS)}"


def test_a_wrong_checksum_is_refused_with_both_values():
    frame = bytearray(wire.encode(low_rank()))
    stored, computed = struct.unpack("<I", frame[-4:])[0] ^ 1, zlib.crc32(frame[:-4])
    frame[-4] ^= 1
    expected = f"frame's checksum is {stored:#010x}; its bytes have {computed:#010x}: damaged or cut short"
    assert refused(bytes(frame)) == expected


def test_a_header_past_the_end_is_refused():
    frame = sealed(b"NS" + bytes([1, LOW_RANK]) + struct.pack("<H", 100) + b"abc")
    assert refused(frame) == "frame's header ends at byte 106; the frame has 13"


@pytest.mark.parametrize("head", [b"", b"\xc1", b"\x92\x01", b"\x01\x02", b"\xa3\xff\xff\xff", b"\x91" * 5000])
def test_a_header_that_is_not_msgpack_is_refused(head):
    assert refused(framed(head)).startswith("frame's header is not msgpack: ")


@pytest.mark.parametrize("header", [[], [[4, 6]], {"a": 2}, 5, None, "text", [None] * 12, [[1] * 500]])
def test_a_header_of_another_form_is_refused(header):
    message = refused(framed(header))
    assert message.startswith("frame's header holds ")
    assert message.endswith("; expected a list of 11 entries")
    assert len(message) < 250


@pytest.mark.parametrize("entry", [[], 5, None, "x", [-1, 3], [FLOAT32, 2.0], [FLOAT32, True], [FLOAT32, 1 << 50]])
def test_a_field_without_dtype_and_shape_is_refused(entry):
    header = [*LOW_RANK_HEADER[:7], entry, *LOW_RANK_HEADER[8:]]
    message = refused(framed(header))
    assert message.startswith("frame's field scale has layout ")
    assert message.endswith("; expected (dtype, *shape)")


def test_an_unknown_dtype_is_refused():
    assert refused(framed([[99, 3]], tag=DENSE)) == "frame's field values has dtype code 99; known: 0 to 10"


def test_a_field_beyond_the_cap_is_refused():
    message = refused(framed([[FLOAT32, 1000, 1000]], tag=DENSE), max_bytes=1_000_000)
    assert message == "frame's field values has shape (1000, 1000) of float32; allowed: 1000000 bytes"


def test_a_payload_that_contradicts_itself_is_refused():
    message = refused(framed([[4, 9], *LOW_RANK_HEADER[1:]]))
    assert message.startswith("frame is not a LowRank: its arrays are ")


@pytest.mark.parametrize("count", [-1, 13, 2**31 - 1])
def test_a_count_out_of_range_is_refused(count):
    rank, planes = (struct.pack("<i", number) for number in (count, 3))
    assert refused(framed(LOW_RANK_HEADER, rank)) == f"frame's rank is {count}; allowed: 0 to 3"
    message = refused(framed(LOW_RANK_HEADER, planes + planes + rank))
    assert message == f"frame's right_planes is {count}; allowed: 0 to 12"


def test_a_body_too_short_or_too_long_is_refused():
    frame = wire.encode(low_rank(rank=1))[:-4]
    assert refused(sealed(frame[:-1])) == "frame's field right ends at byte 22 of the body; the body has 21"
    assert refused(sealed(frame + b"x")) == "frame's body has 23 bytes; its fields take 22"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_numbers_that_are_not_finite_are_refused(value, dtype):
    values = np.ones(3, jnp.dtype(dtype))
    values[1] = value
    assert refused(wire.encode(Dense(values=values))) == "frame's field values holds non-finite numbers"


def test_a_frame_of_another_kind_than_agreed_is_refused():
    dense = Dense(values=np.zeros((2, 3), np.float32))
    assert refused(wire.encode(dense), like=low_rank()).startswith(
        f"frame is Dense(({FLOAT32}, 2, 3),); expected LowRank("
    )


def test_a_frame_of_another_shape_than_agreed_is_refused():
    dense, other = (Dense(values=np.zeros((2, n), np.float32)) for n in (3, 4))
    expected = f"frame is Dense(({FLOAT32}, 2, 3),); expected Dense(({FLOAT32}, 2, 4),)"
    assert refused(wire.encode(dense), like=other) == expected


def test_a_long_header_does_not_make_a_long_message():
    assert (
        len(refused(framed([[4, 6], FLOAT32, "x" * 50_000, *LOW_RANK_HEADER[3:]]), like=low_rank())) < LONGEST_MESSAGE
    )
    assert len(refused(framed([[4, 6], FLOAT32, "x" * 50_000, *LOW_RANK_HEADER[3:]]))) < LONGEST_MESSAGE
    assert len(refused(framed([[1] * 10_000, *LOW_RANK_HEADER[1:]]))) < LONGEST_MESSAGE


# Bytes from anywhere


@pytest.mark.parametrize("payload", [low_rank(), Dense(values=np.arange(6, dtype=np.int16).reshape(2, 3))])
def test_every_truncation_is_refused(payload):
    frame = wire.encode(payload)
    for length in range(len(frame)):
        refused(frame[:length])
        refused(frame[:length], like=payload)


def test_every_flipped_bit_is_refused():
    frame = wire.encode(low_rank())
    for position in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[position // 8] ^= 1 << position % 8
        refused(bytes(damaged))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_refused(data):
    assert_decoded_or_refused(data)
    assert_decoded_or_refused(data, like=low_rank())


@given(st.sampled_from([DENSE, LOW_RANK]), st.binary(max_size=60), st.binary(max_size=60))
def test_any_header_and_body_with_a_right_checksum_are_a_payload_or_refused(tag, header, body):
    assert_decoded_or_refused(framed(header, body, tag))


@settings(max_examples=300)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=4),
    st.sampled_from(["replace", "insert", "delete"]),
)
def test_a_mutated_frame_with_a_right_checksum_is_a_payload_or_refused(rank, edits, kind):
    frame = bytearray(wire.encode(low_rank(rank))[:-4])
    for position, byte in edits:
        span = {"replace": (1, [byte]), "insert": (0, [byte]), "delete": (1, [])}[kind]
        frame[position % len(frame) : position % len(frame) + span[0]] = bytes(span[1])
    assert_decoded_or_refused(sealed(bytes(frame)))
    assert_decoded_or_refused(sealed(bytes(frame)), like=low_rank())


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(0, 12)
    | st.floats()
    | st.text(max_size=5)
)
sizes = st.sampled_from([0, 1, 2, 3, 4, 6, 255, 1 << 16, 1 << 31, (1 << 40) - 1])
entries = scalars | st.lists(sizes, max_size=6) | st.lists(scalars, max_size=4)


@st.composite
def hostile_headers(draw):
    """Headers of the right length with a few entries replaced by anything that msgpack can hold."""
    tag = draw(st.sampled_from([DENSE, LOW_RANK]))
    header = list(LOW_RANK_HEADER) if tag == LOW_RANK else [[FLOAT32, 2, 3]]
    for position in draw(st.sets(st.integers(0, len(header) - 1), min_size=1)):
        header[position] = draw(entries)
    return tag, header


@settings(max_examples=400)
@given(hostile_headers(), st.binary(max_size=40))
@example((LOW_RANK, [[4, 6], 9.0, "B,D", 4, *LOW_RANK_HEADER[4:]]), b"\0" * 4)
@example((LOW_RANK, [*LOW_RANK_HEADER[:7], [FLOAT32], *LOW_RANK_HEADER[8:]]), b"\0" * 4)
@example((DENSE, [[UINT8, *[1] * 70]]), b"x")
@example((DENSE, [[UINT8, 0, 1 << 39, 1 << 39]]), b"")
def test_a_hostile_header_is_a_payload_or_refused(tag_and_header, body):
    tag, header = tag_and_header
    assert_decoded_or_refused(framed(header, body, tag), max_bytes=1 << 20)


MAX_BYTES = 1 << 16
TOP = MAX_BYTES // 4
HOSTILE = {
    "a huge field": (DENSE, [[FLOAT32, 1 << 39]]),
    "a huge product": (DENSE, [[UINT8, *[1 << 39] * 100]]),
    "nothing times a huge size": (DENSE, [[UINT8, 0, 1 << 39, 1 << 39]]),
    "a huge tensor": (LOW_RANK, [[1 << 30, 1 << 30], FLOAT32, "B,D", 4, *LOW_RANK_HEADER[4:]]),
    "many components": (
        LOW_RANK,
        [[4, 6], FLOAT32, "B,D", 4, *COUNTS, [FLOAT32, TOP], [UINT8, TOP], [UINT8, 4 * TOP, 1], [UINT8, 4 * TOP, 1]],
    ),
    "more components than the matrix has": (
        LOW_RANK,
        [[4, 6], FLOAT32, "B,D", 4, *COUNTS, [FLOAT32, 5], [UINT8, 5], [UINT8, 20, 1], [UINT8, 20, 1]],
    ),
    "fields that are small one by one": (
        LOW_RANK,
        [[100, 120], FLOAT32, "B,D", 8, *COUNTS, [FLOAT32, 100], [UINT8, 100], [UINT8, 2400, 13], [UINT8, 2400, 15]],
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_makes_no_room(name):
    """The cap bounds all that a header can make a receiver allocate, padding included."""
    tag, header = HOSTILE[name]
    frame = framed(header, b"\0" * 4, tag)
    tracemalloc.start()
    try:
        message = refused(frame, max_bytes=MAX_BYTES)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(message) < LONGEST_MESSAGE
    assert peak_bytes < MAX_BYTES
