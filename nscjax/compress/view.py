"""Views: a cut tensor as a matrix, by named axes.

A view's name says which axes become rows and which columns: "BH,WC" of a [B, H, W, C] tensor is the [B*H, W*C] matrix.
Small letters are the slowest quarter of the cosines along an axis: "BC,hw" is a sixteenth as wide as "BC,HW", and what
is faster does not cross. How much a low-rank factorisation loses depends on the view: up to five times in error at
equal bytes.
"""

import itertools
import math

import jax
import jax.numpy as jnp

from nscjax import check, linalg
from nscjax.types import Array, Shape

AXES = {2: "BD", 3: "BTD", 4: "BHWC"}
"""Axis letters by number of dimensions: vectors, tokens, images."""

WHOLE, SLOW = "BC,HW", "BC,hw"
"""The views of all channels in one spatial subspace; `SLOW` has the slowest quarter of the cosines of either axis."""

VIEWS = {2: ("B,D",), 3: ("BT,D", "B,TD"), 4: ("BHW,C", "B,HWC", "BC,HW", "BH,WC", SLOW)}
"""Views by number of dimensions."""

KNOWN = tuple(itertools.chain.from_iterable(VIEWS.values()))
"""The views that some cut tensor has."""


def slow_sizes(axes: Shape) -> Shape:
    """Returns how many cosines are a quarter of those along every axis, at least one."""
    return tuple(-(-size // 4) for size in axes)


def names(shape: Shape) -> tuple[str, ...]:
    """Returns the views that a cut tensor of `shape` has; raises an `InputError` where it has none."""
    if len(shape) not in VIEWS:
        raise check.error("cut tensor's shape", tuple(shape), "2 axes (BD), 3 axes (BTD) or 4 axes (BHWC)")
    if 0 in shape:
        raise check.error("cut tensor's shape", tuple(shape), "axes of at least 1")
    return VIEWS[len(shape)]


def resolve(view: str, shape: Shape) -> str:
    """Returns the view's name for `shape`, "auto" resolved by a rule on the shape alone.

    Images with at least as many positions as channels are seen as "BC,HW": all channels of all samples share one
    spatial subspace, which training learns to use. Others lose less in a single message, and yet end with a lower
    accuracy (`docs/results.md`). At high ratios "BC,hw" is better still, for networks that can do without fine detail
    at the cut: it has to be asked for. All else has the view with the smallest component, m + n numbers, of which any
    budget affords the most. `nscjax.compress.calibrate` measures the loss of a message instead.
    """
    known = names(shape)
    if view != "auto":
        return check.one_of("view", view, (*known, "auto"))
    if len(shape) == 4 and shape[1] * shape[2] >= shape[3]:
        return "BC,HW"
    whole = (name for name in known if name != SLOW)
    return min(whole, key=lambda name: sum(matrix_shape(name, shape)))


def matrix_shape(view: str, shape: Shape) -> tuple[int, int]:
    """Returns (m, n) of a cut tensor of `shape` in `view`."""
    if view == SLOW:
        return shape[0] * shape[3], math.prod(slow_sizes(shape[1:3]))
    rows, columns = _axes(view, shape)
    return math.prod(shape[axis] for axis in rows), math.prod(shape[axis] for axis in columns)


def matricise(x: Array, view: str) -> Array:
    """Returns `x` as a float32 matrix [m, n]."""
    if view == SLOW:
        return linalg.product(matricise(x, WHOLE), _slow_cosines(x.shape).T)
    rows, columns = _axes(view, x.shape)
    return jnp.transpose(x, rows + columns).reshape(matrix_shape(view, x.shape)).astype(jnp.float32)


def tensorise(matrix_mn: Array, view: str, spec: jax.ShapeDtypeStruct) -> Array:
    """Returns the matrix [m, n] as a tensor of `spec`'s shape and dtype: the inverse of `matricise`.

    Of what `matricise` leaves out there is nothing in it.
    """
    if view == SLOW:
        return tensorise(linalg.product(matrix_mn, _slow_cosines(spec.shape)), WHOLE, spec)
    rows, columns = _axes(view, spec.shape)
    order = rows + columns
    inverse = tuple(order.index(axis) for axis in range(len(order)))
    return narrowed(jnp.transpose(matrix_mn.reshape([spec.shape[axis] for axis in order]), inverse), spec.dtype)


def narrowed(tensor: Array, dtype: jnp.dtype) -> Array:
    """Returns a float32 tensor in a narrower dtype; a little beyond its largest number is that number, not infinite."""
    largest = jnp.finfo(dtype).max.astype(jnp.float32)
    return jnp.clip(tensor, -largest, largest).astype(dtype)


def normalised(x: Array, view: str) -> tuple[Array, Array]:
    """Returns `x` as a float32 matrix [m, n] over its largest magnitude, and that: see `over_peak`."""
    return over_peak(matricise(x, view))


def over_peak(tensor: Array) -> tuple[Array, Array]:
    """Returns a float32 tensor over its largest magnitude, and that: squares of it stay in range.

    The zero tensor's magnitude is 0; one that is not finite has a magnitude that is not.
    """
    peak = jnp.max(jnp.abs(tensor))
    # One over the largest numbers is subnormal, and flushed to zero: both are made smaller first.
    shrink = jnp.where(peak > 1, 2.0**-32, 1.0)
    unit = tensor * shrink / jnp.where(peak > 0, peak * shrink, 1.0)
    # Once in memory and not anew in every product that reads it.
    return jax.lax.optimization_barrier(unit), peak


def problem(view: object, shape: Shape, components: Shape) -> str | None:
    """Returns what is wrong with a view and a number of components that a frame's own header claims, or None.

    Args:
        view: claimed.
        shape: the cut tensor's, already checked.
        components: shape of the array with one entry a component.
    """
    if len(shape) not in VIEWS or view not in VIEWS[len(shape)]:
        return f"its shape {shape} has no view {view!r}"
    most = min(matrix_shape(str(view), shape))
    if len(components) != 1 or not 1 <= components[0] <= most:
        return f"its scale has shape {components}; allowed: (1,) to ({most},)"
    return None


def _slow_cosines(shape: Shape) -> Array:
    """Returns the slowest quarter of the cosines along height and along width, orthonormal rows [n, H*W]."""
    return linalg.cosines(shape[1:3], slow_sizes(shape[1:3]))


def _axes(view: str, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    letters = AXES[len(shape)]
    rows, columns = view.split(",")
    return tuple(letters.index(axis) for axis in rows), tuple(letters.index(axis) for axis in columns)
