"""Settings that are fixed once, by measurement on a first tensor: the view, and the rank that the budget can reach."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nscjax import check, layout, measure
from nscjax.compress import view as views
from nscjax.compress.base import Compressor, SideInfo
from nscjax.compress.low_rank import MEAN_BITS
from nscjax.types import Array, Key

MESSAGES = 4
"""How often the tensor is sent again to a cold compressor before it is judged: its basis has converged by then."""


def calibrate(x: Array, build: Callable[[str], Compressor], budget_bytes: int, *, key: Key | None = None) -> str:
    """Returns the name of the view in which `x` is sent with the least distortion.

    Where the budget affords no component of any view, it is the one with the smallest component.

    Every view of the tensor's shape is tried with the compressor that `build` makes for it. This compiles a function a
    view, for a compressor that was tried before none, and is done once, outside jit; the sender does it on its own data
    and tells the other end the name.

    Args:
        x: a cut tensor, [B, D], [B, T, D] or [B, H, W, C].
        build: from a view's name to a compressor.
        budget_bytes: the largest frame allowed.
        key: for the cold start; a fixed one by default.

    Example:
        >>> import jax, nscjax.compress as compress
        >>> x = jax.random.normal(jax.random.key(0), (8, 16))
        >>> compress.calibrate(x, lambda view: compress.nsc_sl(view=view), budget_bytes=500)
        'B,D'
    """
    key = jax.random.key(0) if key is None else key
    names = views.names(x.shape)
    if len(names) == 1:
        return names[0]
    spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
    least = {name: build(name).min_bytes(spec) for name in names}
    affordable = [name for name in names if least[name] <= budget_bytes]
    if not affordable:
        return min(names, key=lambda name: least[name])
    if len(affordable) == 1:
        return affordable[0]
    return min(affordable, key=lambda name: float(_distortion_when_warm(x, build(name), budget_bytes, key)))


@functools.partial(jax.jit, static_argnames="compressor")
def _distortion_when_warm(x: Array, compressor: Compressor, budget_bytes: int, key: Key) -> Array:
    side = SideInfo(key=key, budget_bytes=budget_bytes)

    def send(_, carry):
        return compressor.compress(x, carry[1], side)

    enc, dec = compressor.init(key, jax.ShapeDtypeStruct(x.shape, x.dtype))
    # A loop, so that the compressor is compiled once; the shapes of a payload are known without making one.
    payload = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(send, 0, (None, enc))[0])
    payload, _ = jax.lax.fori_loop(0, MESSAGES, send, (payload, enc))
    return measure.distortion(x, compressor.decompress(payload, dec, side)[0])


def reachable_rank(compressor: Compressor, spec: jax.ShapeDtypeStruct, budget_bytes: int) -> int:
    """Returns the most components of a ranked `compressor` that are of use within `budget_bytes`, at least 1.

    A `max_rank` above it only costs time: the factorisation would compute components that are never sent. Where every
    component has its own bits, as many as would fit with `MEAN_BITS` an entry are of use.
    """
    enc, _ = jax.eval_shape(compressor.init, jax.random.key(0), spec)
    side = SideInfo(key=jax.random.key(0), budget_bytes=budget_bytes)
    payload, _ = jax.eval_shape(compressor.compress, spec, enc, side)
    tops = layout.most(payload)
    if "rank" not in tops:
        raise check.error("payload of the compressor", type(payload).__name__, "one that is cut to a rank")

    def fits(rank):
        planes = {by: min(MEAN_BITS * rank, top) for by, top in tops.items()}
        return layout.frame_bytes(payload, **planes | {"rank": rank}) <= budget_bytes

    return max([1, *(rank for rank in range(1, tops["rank"] + 1) if fits(rank))])
