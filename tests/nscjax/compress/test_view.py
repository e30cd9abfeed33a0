import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import check, compress
from nscjax.compress import view
from tests.nscjax.tensors import normal, spec

SHAPES = {2: (5, 7), 3: (3, 5, 7), 4: (3, 2, 5, 7)}
CASES = [(name, SHAPES[num_axes]) for num_axes, names in view.VIEWS.items() for name in names if name != view.SLOW]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_tensorise_is_the_inverse_of_matricise(name, shape, dtype):
    def there_and_back(x):
        matrix = view.matricise(x, name)
        return matrix, view.tensorise(matrix, name, spec(x))

    x = normal(shape, dtype)
    matrix, back = jax.jit(there_and_back)(x)
    assert matrix.dtype == jnp.float32
    assert matrix.shape == view.matrix_shape(name, shape)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("shape", [(3, 8, 12, 5), (2, 5, 3, 4), (2, 1, 1, 3)])
def test_the_slow_view_has_the_slow_cosines_alone(shape):
    matrix = normal(view.matrix_shape(view.SLOW, shape))
    tensor = view.tensorise(matrix, view.SLOW, spec(normal(shape)))
    np.testing.assert_allclose(view.matricise(tensor, view.SLOW), matrix, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(tensor**2), jnp.sum(matrix**2), rtol=1e-5)
    constant = jnp.ones(shape)  # the slowest of all
    np.testing.assert_allclose(
        view.tensorise(view.matricise(constant, view.SLOW), view.SLOW, spec(constant)), 1, atol=1e-5
    )
    assert matrix.shape == (shape[0] * shape[3], -(-shape[1] // 4) * -(-shape[2] // 4))


def test_a_view_puts_its_first_axes_into_rows():
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    expected = np.stack([x[b, :, :, c].ravel() for b in range(2) for c in range(5)])
    np.testing.assert_array_equal(view.matricise(jnp.asarray(x), "BC,HW"), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("BHW,C", (30, 7)), ("B,HWC", (3, 70)), ("BC,HW", (21, 10)), ("BH,WC", (6, 35)), ("BC,hw", (21, 2))],
)
def test_matrix_shape(name, expected):
    assert view.matrix_shape(name, SHAPES[4]) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 16), "B,D"),
        ((32, 10, 8), "B,TD"),
        ((4, 50, 50), "BT,D"),
        ((8, 6, 7, 64), "BHW,C"),
        ((16, 2, 7, 16), "BH,WC"),
        ((64, 3, 3, 16), "B,HWC"),
    ],
)
def test_auto_is_the_view_with_the_smallest_component(shape, expected):
    assert view.resolve("auto", shape) == expected
    smallest = min(sum(view.matrix_shape(name, shape)) for name in view.names(shape) if name != view.SLOW)
    assert sum(view.matrix_shape(expected, shape)) == smallest


@pytest.mark.parametrize("shape", [(128, 16, 16, 32), (8, 6, 8, 48), (1, 4, 4, 16)])
def test_auto_is_one_spatial_subspace_where_an_image_has_as_many_positions_as_channels(shape):
    assert view.resolve("auto", shape) == "BC,HW"


def test_a_name_stands_for_itself():
    assert view.resolve("BC,HW", SHAPES[4]) == "BC,HW"


def test_a_view_of_other_axes_is_refused():
    with pytest.raises(check.InputError) as caught:
        view.resolve("BT,C", (3, 5, 7))
    assert str(caught.value) == "view is 'BT,C'; allowed: 'BT,D', 'B,TD', 'auto'. Did you mean 'BT,D'?"


@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4, 5)])
def test_a_tensor_without_views_is_refused(shape):
    with pytest.raises(check.InputError) as caught:
        view.resolve("auto", shape)
    allowed = "2 axes (BD), 3 axes (BTD) or 4 axes (BHWC)"
    assert str(caught.value) == f"cut tensor's shape is {shape}; allowed: {allowed}."


@pytest.mark.parametrize("build", [compress.nsc_sl, compress.nsc_rd])
def test_a_tensor_without_entries_is_refused(build):
    with pytest.raises(check.InputError, match=r"shape is \(4, 0, 4, 8\); allowed: axes of at least 1"):
        build().init(jax.random.key(0), jax.ShapeDtypeStruct((4, 0, 4, 8), jnp.float32))
