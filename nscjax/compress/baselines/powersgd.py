"""PowerSGD: one warm power iteration, two factors in half precision, error feedback.

Source: Vogels et al. 2019, arXiv 1905.13727, algorithm 1, and torch's `powerSGD_hook`: P = orth(M Q), Q = M^T P, both
cross, M ~ P Q^T; Q is the next message's start; what was not sent is added to the next message. epfml/powersgd's
current code sends one factor a step and keeps the other: of a cut tensor the batch's side belongs to other samples in
the next step, so that this cannot be carried over. Departures: factors in float16 (float32 there); the rank follows the
budget (fixed there) by leaving out the last columns, of which QR makes the first ones independent.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nscjax import check, layout, linalg
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.feedback import error_feedback as with_error_feedback
from nscjax.types import Array, Shape


@layout.payload(tag=12)
class Factors:
    """Two factors of a cut tensor's matrix view in half precision, their rows scaled to a largest entry of 1.

    Attributes:
        rank: int32 scalar, how many components are sent.
        scale: float32 [max_rank], the length of each component.
        left: float16 [max_rank, m].
        right: float16 [max_rank, n].
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        view: the view's name.
    """

    rank: Array = layout.array()
    scale: Array = layout.ranked()
    left: Array = layout.ranked()
    right: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()
    view: str = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        problem = layout.tensor_problem(self, max_bytes) or views.problem(self.view, self.shape, self.scale.shape)
        return problem or layout.arrays_problem(self, _empty(layout.tensor_spec(self), self.view, self.scale.shape[0]))


def powersgd(
    *, rank: int | None = None, max_rank: int = 16, view: str = "auto", error_feedback: bool = True
) -> Compressor:
    """Returns the PowerSGD compressor; its frames decode alone.

    Args:
        rank: components sent where the budget affords them, >= 1; by default as many as it affords.
        max_rank: the most components, if `rank` is not given.
        view: a view's name or "auto", see `nscjax.compress.view`.
        error_feedback: whether what was not sent is added to the next message.

    Raises:
        InputError: an argument out of range.
    """
    top = check.count("rank", rank, 1) if rank is not None else check.count("max_rank", max_rank, 1)

    def init(key, spec):
        template = _empty(spec, view, top)
        return jax.random.normal(key, (template.scale.shape[0], template.right.shape[1]), jnp.float32), ()

    def compress(x, right, side):
        template = _empty(x, view, top)
        matrix, peak = views.normalised(x, template.view)
        affordable = layout.affordable_rank(template, side.budget_bytes)
        left = jnp.linalg.qr(linalg.product(matrix, right.T))[0].T
        image = linalg.product(left, matrix)
        left_scale, right_scale = (jnp.max(jnp.abs(rows), axis=1) for rows in (left, image))
        payload = dataclasses.replace(
            template,
            rank=affordable if rank is None else jnp.where(affordable >= len(left), len(left), 0),
            scale=peak * left_scale * right_scale,
            left=_scaled(left, left_scale),
            right=_scaled(image, right_scale),
        )
        # A direction that has vanished stays as it was: a zero tensor must not end the iteration.
        lengths = jnp.linalg.norm(image, axis=1, keepdims=True)
        is_usable = jnp.isfinite(peak) & (lengths > 1e-6)
        return payload, jnp.where(is_usable, image / jnp.where(lengths > 0, lengths, 1.0), right)

    def decompress(payload, dec_state, side):
        del side
        is_sent = jnp.arange(payload.scale.shape[0]) < payload.rank
        scale = jnp.where(is_sent, payload.scale, 0.0)
        left = payload.left.astype(jnp.float32) * scale[:, None]
        matrix = linalg.product(left.T, payload.right.astype(jnp.float32))
        return views.tensorise(matrix, payload.view, layout.tensor_spec(payload)), dec_state

    def min_bytes(spec):
        template = _empty(spec, view, top)
        return layout.frame_bytes(template, rank=1 if rank is None else template.scale.shape[0])

    bare = Compressor(init, compress, decompress, layout.num_bytes, min_bytes)
    return with_error_feedback(bare) if error_feedback else bare


def _scaled(rows: Array, scale: Array) -> Array:
    """Returns the rows over their scale in float16: gradients of 1e-7 keep their precision."""
    return (rows / jnp.where(scale == 0, 1.0, scale)[:, None]).astype(jnp.float16)


def _empty(spec: jax.ShapeDtypeStruct | Array, view: str, max_rank: int) -> Factors:
    name = views.resolve(view, spec.shape)
    m, n = views.matrix_shape(name, spec.shape)
    top = min(max_rank, m, n)
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((top,), jnp.float32),
        "left": jax.ShapeDtypeStruct((top, m), jnp.float16),
        "right": jax.ShapeDtypeStruct((top, n), jnp.float16),
    }
    return Factors(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype), view=name)
