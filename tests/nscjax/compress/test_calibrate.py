import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress, layout
from nscjax.compress import view
from tests.nscjax.tensors import distortion, normal, of_rank, spec, with_spectrum

SHAPE = (12, 3, 16)
build = lambda name: compress.nsc_sl(view=name, max_rank=4, energy=1.0)  # noqa: E731


def test_the_view_that_has_the_structure_is_found():
    """It is neither the first one nor the one that the shape alone would say."""
    matrix = of_rank(*view.matrix_shape("B,TD", SHAPE), rank=2)
    x = view.tensorise(matrix, "B,TD", jax.ShapeDtypeStruct(SHAPE, jnp.float32)) + 0.05 * normal(SHAPE)
    assert view.names(SHAPE)[0] == view.resolve("auto", SHAPE) == "BT,D"
    assert compress.calibrate(x, build, budget_bytes=300) == "B,TD"


def test_a_budget_for_no_view_gives_the_one_that_needs_least():
    x = normal(SHAPE)
    needed = {name: build(name).min_bytes(spec(x)) for name in view.names(SHAPE)}
    least = min(needed, key=needed.get)
    assert compress.calibrate(x, build, budget_bytes=min(needed.values()) - 1) == least


def test_a_view_that_the_budget_does_not_afford_is_not_tried():
    x = normal(SHAPE)
    needed = {name: build(name).min_bytes(spec(x)) for name in view.names(SHAPE)}
    assert compress.calibrate(x, build, budget_bytes=min(needed.values())) == min(needed, key=needed.get)


def test_the_only_view_is_taken_without_trying():
    def never(name):
        raise AssertionError

    assert compress.calibrate(normal((4, 6)), never, budget_bytes=100) == "B,D"


def test_a_tensor_without_views_is_refused():
    with pytest.raises(check.InputError, match=r"cut tensor's shape is \(5,\)"):
        compress.calibrate(jnp.zeros(5), build, budget_bytes=100)


@pytest.mark.parametrize("budget_bytes", [0, 60, 150, 400])
def test_reachable_rank_is_the_most_that_fits(budget_bytes):
    x = normal((12, 20))
    compressor = compress.METHODS["powersgd"](max_rank=12, error_feedback=False)
    enc, _ = compressor.init(jax.random.key(0), spec(x))
    payload = jax.eval_shape(compressor.compress, spec(x), enc, compress.SideInfo(jax.random.key(0), 0))[0]
    fits = [r for r in range(1, 13) if layout.frame_bytes(payload, r) <= budget_bytes]
    assert compress.reachable_rank(compressor, spec(x), budget_bytes) == max([1, *fits])


def test_reachable_rank_loses_nothing_where_every_component_has_its_own_bits():
    x, budget_bytes = with_spectrum(128, 256, 0.5), 4000
    sent = []
    for top in (128, compress.reachable_rank(compress.nsc_sl(max_rank=128), spec(x), budget_bytes)):
        compressor = compress.nsc_sl(max_rank=top, energy=1.0)
        enc, dec = compressor.init(jax.random.key(0), spec(x))
        send = jax.jit(compressor.compress)
        for step in range(4):
            payload, enc = send(x, enc, compress.SideInfo(jax.random.key(step), budget_bytes))
        sent.append((top, distortion(x, compressor.decompress(payload, dec, None)[0])))
    assert sent[1][0] < 64
    assert sent[1][1] < 1.01 * sent[0][1]


def test_reachable_rank_is_no_more_than_the_matrix_has():
    struct = jax.ShapeDtypeStruct((3, 20), jnp.float32)
    assert compress.reachable_rank(compress.nsc_sl(), struct, np.iinfo(np.int32).max) == 3


def test_the_rank_of_a_method_without_one_is_refused():
    with pytest.raises(check.InputError, match="payload of the compressor is 'Dense'"):
        compress.reachable_rank(compress.identity(), jax.ShapeDtypeStruct((8, 9), jnp.float32), 1000)
