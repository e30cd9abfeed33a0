"""Stored frames decode for ever: a change that breaks one of these breaks every frame on disk and every other party.

`python -m tests.nscjax.golden.test_golden` makes the files of new payloads; a file that is there is never overwritten.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, layout, wire
from nscjax.compress.base import Dense
from nscjax.compress.low_rank import decompress

HERE = pathlib.Path(__file__).parent
NAMES = ("dense_float32", "dense_bfloat16", "low_rank_4", "low_rank_8", "low_rank_16", "low_rank_empty")


def path(name, suffix):
    return HERE / f"{name}.{suffix}"


def stored(name):
    """Returns (frame, the arrays that it decodes to, by field, and "x_hat")."""
    with np.load(path(name, "npz")) as file:
        return path(name, "frame").read_bytes(), dict(file)


@jax.jit
def x_hat_of(payload):
    return payload.values if isinstance(payload, Dense) else decompress(payload, (), None)[0]


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
    x_hat = x_hat_of(wire.decode(frame))
    np.testing.assert_allclose(np.asarray(x_hat, np.float32), arrays["x_hat"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("low_rank")])
def test_the_metadata_of_a_stored_frame(name):
    payload = wire.decode(stored(name)[0])
    bits, rank = {"4": (4, 3), "8": (8, 3), "16": (16, 3), "empty": (8, 0)}[name.split("_")[-1]]
    assert (payload.shape, payload.view, payload.bits) == ((3, 2, 4, 5), "BH,WC", bits)
    assert layout.DTYPES[payload.dtype] == "float32"
    assert payload.rank == rank
    assert payload.scale.shape == (4,)


def made(name):
    """Returns the payload to store under `name`."""
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype(np.float32)
    kind, variant = name.rsplit("_", 1)
    if kind == "dense":
        return Dense(values=jnp.asarray(x, variant))
    bits = 8 if variant == "empty" else int(variant)
    compressor = compress.nsc_sl(max_rank=4, energy=1.0, factor_bits=bits, view="BH,WC")
    enc, _ = compressor.init(jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))
    empty, _ = compressor.compress(jnp.asarray(x), enc, compress.SideInfo(jax.random.key(1), 0))
    budget_bytes = 0 if variant == "empty" else layout.frame_bytes(empty, rank=3)
    return compressor.compress(jnp.asarray(x), enc, compress.SideInfo(jax.random.key(1), budget_bytes))[0]


def store(name):
    """Writes the frame of `name` and what it decodes to; raises `FileExistsError` where it is stored already."""
    frame = wire.encode(made(name))
    payload = wire.decode(frame)
    arrays = {field.name: getattr(payload, field.name) for field in layout.array_fields(type(payload))}
    arrays["x_hat"] = np.asarray(x_hat_of(payload))
    widened = {key: v.astype(np.float32) if v.dtype == jnp.bfloat16 else v for key, v in arrays.items()}
    with path(name, "frame").open("xb") as file:
        file.write(frame)
    with path(name, "npz").open("xb") as file:
        np.savez(file, **widened)


def test_a_stored_frame_is_never_overwritten():
    with pytest.raises(FileExistsError):
        store("dense_float32")


if __name__ == "__main__":
    for new in NAMES:
        if not path(new, "frame").exists():
            store(new)
