import dataclasses

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from nscjax import compress, layout
from nscjax.check import InputError
from nscjax.compress.base import Dense
from nscjax.compress.baselines.powersgd import Factors
from tests.nscjax.tensors import normal, side, spec

SHAPE = (5, 3, 4, 7)
compressor = compress.METHODS["powersgd"](max_rank=6, view="BH,WC", error_feedback=False)


@pytest.fixture(scope="module")
def payload():
    x = normal(SHAPE)
    enc, _ = compressor.init(jax.random.key(1), spec(x))
    return jax.jit(compressor.compress)(x, enc, side())[0]


def test_codes_of_dtypes_and_tags_of_payloads_are_for_ever():
    assert (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
        *("float16", "bfloat16", "float32", "float64"),
    ) == layout.DTYPES
    assert layout.PAYLOADS[1] is Dense
    # Retired: low rank with the same bits for every component; codebooks in single precision.
    assert not {2, 9} & set(layout.PAYLOADS)
    assert layout.PAYLOADS[11] is compress.LowRank


def test_a_taken_tag_is_refused():
    class Other:
        values: jax.Array = layout.array()

    with pytest.raises(ValueError, match="payload tag 1 is taken by Dense; take a free one"):
        layout.payload(tag=1)(Other)
    assert layout.PAYLOADS[1] is Dense


def test_only_arrays_are_leaves_and_the_rest_is_static(payload):
    leaves, treedef = jax.tree.flatten(payload)
    assert len(leaves) == len(layout.array_fields(type(payload))) == 4
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert treedef.unflatten(leaves).view == "BH,WC"
    assert [field.name for field in layout.static_fields(type(payload))] == ["shape", "dtype", "view"]


def test_header_is_a_msgpack_list_of_metadata_and_layouts(payload):
    float32, float16, int32 = (layout.DTYPES.index(name) for name in ("float32", "float16", "int32"))
    assert msgpack.unpackb(layout.header(payload)) == [
        *([*SHAPE], float32, "BH,WC"),
        *([int32], [float32, 6], [float16, 6, 15], [float16, 6, 28]),
    ]


def test_header_depends_on_the_layout_alone(payload):
    emptied = jax.tree.map(jnp.zeros_like, payload)
    shapes = jax.eval_shape(lambda tree: tree, payload)
    assert layout.header(payload) == layout.header(emptied) == layout.header(shapes)


def test_frame_of_rank_0_is_header_and_rank_alone(payload):
    assert layout.frame_bytes(payload) == 6 + len(layout.header(payload)) + 4 + 4


def test_every_component_adds_its_scale_and_its_rows(payload):
    assert layout.frame_bytes(payload, rank=3) - layout.frame_bytes(payload) == 3 * (4 + 2 * 15 + 2 * 28)


def test_num_bytes_follows_the_rank_inside_jit(payload):
    num_bytes = jax.jit(layout.num_bytes)
    for rank in (0, 1, 6):
        counted = num_bytes(jax.tree.map(lambda leaf: leaf, payload.__class__(**{**vars(payload), "rank": rank})))
        assert counted.dtype == jnp.int32
        assert counted == layout.frame_bytes(payload, rank)


def test_num_bytes_of_a_payload_without_rank_is_fixed():
    dense = Dense(values=jnp.zeros((3, 5), jnp.bfloat16))
    assert layout.num_bytes(dense) == layout.frame_bytes(dense) == 6 + len(layout.header(dense)) + 30 + 4


@pytest.mark.parametrize("rank", [0, 1, 6, 100])
def test_affordable_rank_is_the_most_that_fits_and_has_room(payload, rank):
    exact = layout.frame_bytes(payload, min(rank, 6)) + (rank > 6)
    assert layout.affordable_rank(payload, exact) == min(rank, 6)
    assert layout.affordable_rank(payload, exact - 1) == min(max(rank - 1, 0), 6)
    with pytest.raises(IndexError):
        layout.frame_bytes(payload, 7)


@pytest.mark.parametrize("budget_bytes", [0, 1, -5, np.int32(7)])
def test_affordable_rank_is_never_negative(payload, budget_bytes):
    affordable = layout.affordable_rank(payload, budget_bytes)
    assert affordable == 0
    assert affordable.dtype == jnp.int32


def test_frames_longer_than_an_int32_can_count_are_never_affordable():
    row = jax.ShapeDtypeStruct((1 << 30,), jnp.uint8)
    rows = jax.ShapeDtypeStruct((5, *row.shape), row.dtype)
    huge = Factors(jax.ShapeDtypeStruct((), jnp.int32), rows, rows, rows, (1, 1), 0, "B,D")
    assert layout.affordable_rank(huge, 2**31 - 1) == 0
    thin = jax.ShapeDtypeStruct((5, 1), jnp.uint8)
    assert layout.affordable_rank(dataclasses.replace(huge, left=thin, right=thin), 2**31 - 1) == 1


def test_a_doubling_field_has_two_to_the_rank_rows():
    @layout.payload(tag=255)
    class Book:
        rank: jax.Array = layout.array()
        words: jax.Array = layout.doubling()
        planes: jax.Array = layout.ranked()

    del layout.PAYLOADS[255]
    rank = jax.ShapeDtypeStruct((), jnp.int32)
    book = Book(rank, jax.ShapeDtypeStruct((37, 2), jnp.float32), jax.ShapeDtypeStruct((8, 3), jnp.uint8))
    assert layout.most(book) == {"rank": 5}
    lengths = [layout.frame_bytes(book, r) for r in range(6)]
    assert [length - lengths[0] for length in lengths] == [0, *(8 * 2**r + 3 * r for r in range(1, 6))]
    assert [int(layout.affordable_rank(book, length)) for length in lengths] == [0, 1, 2, 3, 4, 5]
    assert layout.affordable_rank(book, lengths[4] - 1) == 3


def test_a_payload_may_count_several_things():
    x = normal(SHAPE)
    several = compress.nsc_sl(max_rank=6, view="BH,WC")
    sent = several.compress(x, several.init(jax.random.key(1), spec(x))[0], side())[0]
    assert layout.most(sent) == {"rank": 6, "left_planes": 48, "right_planes": 48}
    base = layout.frame_bytes(sent)
    assert layout.frame_bytes(sent, rank=2, left_planes=5, right_planes=7) - base == 2 * (4 + 1) + 5 * 2 + 7 * 4
    assert layout.num_bytes(sent) == base + 5 * sent.rank + 2 * sent.left_planes + 4 * sent.right_planes


def test_a_dtype_that_may_not_cross_is_named():
    assert [layout.dtype_code(dtype) for dtype in ("bool", jnp.dtype("bfloat16"), np.dtype("float64"))] == [0, 8, 10]
    with pytest.raises(InputError, match=r"dtype of what crosses is 'complex64'; allowed: 'bool'"):
        compressor.init(jax.random.key(1), jax.ShapeDtypeStruct(SHAPE, jnp.complex64))
