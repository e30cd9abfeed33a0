"""Stored frames decode for ever: a change that breaks one of these breaks every frame on disk and every other party.

`python -m tests.nscjax.golden.test_golden` makes the files of new payloads; a file that is there is never overwritten.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nscjax import compress, layout, wire
from nscjax.compress.base import Dense
from nscjax.compress.low_rank import Subspace
from nscjax.compress.nsc_rd import forget
from tests.nscjax.tensors import sealed

HERE = pathlib.Path(__file__).parent
SHAPE = (3, 2, 4, 5)
SUPPORT = np.random.default_rng(1).random(SHAPE) < 0.4
SUPPORT[:] = SUPPORT[:1]  # as many entries of every sample
METHODS = {
    **{
        f"low_rank_{bits}": compress.nsc_sl(max_rank=4, energy=1.0, factor_bits=bits, view="BH,WC")
        for bits in (4, 8, 16)
    },
    "low_rank_empty": compress.nsc_sl(max_rank=4, energy=1.0, factor_bits=8, view="BH,WC"),
    "quantised": compress.METHODS["uniform"](),
    "sparse": compress.METHODS["top_k"](),
    "sparse_values": compress.METHODS["top_k"](),
    "banded": compress.METHODS["dct"](),
    "half": compress.METHODS["fp16"](),
    "superposed": compress.METHODS["c3_sl"](),
    "codebook": compress.METHODS["fedlite"](subvector=3, most_bits=3),
    "columns": compress.METHODS["splitfc"](bits=3),
    "coefficients": compress.nsc_sl(max_rank=4, energy=1.0, view="BH,WC"),
    "factors": compress.METHODS["powersgd"](max_rank=4, view="BH,WC", error_feedback=False),
    "coded": compress.nsc_rd(max_rank=4),
    "coded_cosines": compress.nsc_rd(max_rank=6, places="cosines"),
    "coded_slow": compress.nsc_rd(places="slow"),
}
"""Compressors whose payloads are stored; `Dense` needs none."""
NAMES = ("dense_float32", "dense_bfloat16", *METHODS)
RANKS = {
    **{"low_rank_empty": 0, "factors": 3, "coefficients": 3, "quantised": 11, "sparse": 7, "sparse_values": 5},
    **{
        "banded": 29,
        "half": 1,
        "superposed": 2,
        "codebook": 2,
        "columns": 9,
        "coded": 20,
        "coded_cosines": 30,
        "coded_slow": 3,
    },
}
BUDGETS = {"coded": 200, "coded_cosines": 220, "coded_slow": 100}
"""Of a frame in bytes; where none is given, those of the rank."""


def path(name, suffix):
    return HERE / f"{name}.{suffix}"


def stored(name):
    """Returns (frame, the arrays that it decodes to, by field, and "x_hat")."""
    with np.load(path(name, "npz")) as file:
        return path(name, "frame").read_bytes(), dict(file)


def x_hat_of(name, payload):
    if isinstance(payload, Dense):
        return payload.values
    _, dec = METHODS[name].init(jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    return decompress(name)(jax.tree.map(jnp.asarray, payload), dec, side_of(name, 0))[0]


@functools.cache
def decompress(name):
    return jax.jit(METHODS[name].decompress)


def side_of(name, budget_bytes):
    basis = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)
    support = {"sparse_values": SUPPORT, "coefficients": Subspace(jnp.asarray(basis), "BH,WC")}.get(name)
    return compress.SideInfo(jax.random.key(1), budget_bytes, support=support)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_frame_decodes_to_its_arrays(name):
    frame, arrays = stored(name)
    payload = wire.decode(frame)
    fields = [field.name for field in layout.array_fields(type(payload))]
    assert {*fields, "x_hat"} == set(arrays)
    for field in fields:
        value = getattr(payload, field)
        assert str(value.dtype) == ("bfloat16" if name == "dense_bfloat16" else str(arrays[field].dtype))
        np.testing.assert_array_equal(value.astype(arrays[field].dtype), arrays[field])


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_frame_is_made_again_to_the_byte(name):
    frame, _ = stored(name)
    assert wire.encode(wire.decode(frame)) == frame


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_frame_stands_for_the_same_tensor(name):
    frame, arrays = stored(name)
    x_hat = x_hat_of(name, wire.decode(frame))
    np.testing.assert_allclose(np.asarray(x_hat, np.float32), arrays["x_hat"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("low_rank")])
def test_the_metadata_of_a_stored_frame(name):
    payload = wire.decode(stored(name)[0])
    bits, rank = {"4": (4, 4), "8": (8, 4), "16": (16, 4), "empty": (8, 0)}[name.split("_")[-1]]
    assert (payload.shape, payload.view, payload.most_bits) == ((3, 2, 4, 5), "BH,WC", bits)
    assert layout.DTYPES[payload.dtype] == "float32"
    assert payload.rank == rank
    assert payload.right_planes == sum(payload.bits)  # the longer row's of a wide matrix
    assert payload.scale.shape == (4,)


@pytest.mark.parametrize("name", RANKS)
def test_the_rank_of_a_stored_frame(name):
    assert wire.decode(stored(name)[0]).rank == RANKS[name]


def made(name):
    """Returns the payload to store under `name`."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    if name.startswith("dense"):
        return Dense(values=x.astype(name.split("_")[1]))
    enc, dec = METHODS[name].init(jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))
    if name.startswith("coded"):
        enc = forget(enc, dec)  # whose basis crosses
    budget_bytes = BUDGETS.get(name) or budget_of(
        METHODS[name].compress(x, enc, side_of(name, 0))[0], RANKS.get(name, 3)
    )
    return METHODS[name].compress(x, enc, side_of(name, budget_bytes))[0]


def budget_of(payload, rank):
    """Returns a budget with which such a payload has the rank."""
    counts = {count: min(4 * rank, top) for count, top in layout.most(payload).items()}
    return layout.frame_bytes(payload, **counts | {"rank": rank})


def store(name):
    """Writes the frame of `name` and what it decodes to; raises `FileExistsError` where it is stored already."""
    frame = wire.encode(made(name))
    payload = wire.decode(frame)
    arrays = {field.name: getattr(payload, field.name) for field in layout.array_fields(type(payload))}
    arrays["x_hat"] = np.asarray(x_hat_of(name, payload))
    widened = {key: v.astype(np.float32) if v.dtype == jnp.bfloat16 else v for key, v in arrays.items()}
    with path(name, "frame").open("xb") as file:
        file.write(frame)
    with path(name, "npz").open("xb") as file:
        np.savez(file, **widened)


def framed(header, body, tag):
    """Returns a frame with any header and a right checksum."""
    head = msgpack.packb(header)
    frame = b"NS" + bytes([layout.VERSION, tag]) + len(head).to_bytes(2, "little") + head + body
    return sealed(frame)


scalars = (
    st.none() | st.integers(-3, 300) | st.sampled_from([1 << 31, (1 << 40) - 1]) | st.floats() | st.text(max_size=3)
)
entries = scalars | st.lists(st.integers(0, 300) | st.just(1 << 40), max_size=5) | st.lists(scalars, max_size=4)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_header_that_was_tampered_with_is_a_payload_or_refused(name, data):
    frame = stored(name)[0]
    end = 6 + int.from_bytes(frame[4:6], "little")
    header = msgpack.unpackb(frame[6:end])
    for position in data.draw(st.sets(st.integers(0, len(header) - 1), min_size=1, max_size=3)):
        header[position] = data.draw(entries)
    try:
        payload = wire.decode(framed(header, frame[end:-4], frame[3]), max_bytes=1 << 20)
    except wire.WireError as problem:
        message = str(problem)
    else:
        assert len(wire.encode(payload)) == layout.num_bytes(payload)
        return
    assert 0 < len(message) < 1000


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=15)
@given(data=st.data())
def test_a_body_that_was_tampered_with_is_a_tensor_or_refused(name, data):
    frame = bytearray(stored(name)[0][:-4])
    end = 6 + int.from_bytes(frame[4:6], "little")
    for position in data.draw(st.sets(st.integers(end, len(frame) - 1), min_size=1, max_size=12)):
        frame[position] = data.draw(st.integers(0, 255))
    try:
        payload = wire.decode(sealed(frame))
    except wire.WireError:
        return
    assert x_hat_of(name, payload).shape == SHAPE


def test_a_stored_frame_is_never_overwritten():
    with pytest.raises(FileExistsError):
        store("dense_float32")


if __name__ == "__main__":
    for new in NAMES:
        if not path(new, "frame").exists():
            store(new)
