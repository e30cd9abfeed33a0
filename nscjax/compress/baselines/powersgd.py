"""PowerSGD: one warm power iteration, two factors in half precision, error feedback.

Source: Vogels et al. 2019, arXiv 1905.13727, algorithm 1, and torch's `powerSGD_hook`: P = orth(M Q), Q = M^T P, both
cross, M ~ P Q^T; Q is the next message's start; what was not sent is added to the next message. epfml/powersgd's
current code sends one factor a step and keeps the other: of a cut tensor the batch's side belongs to other samples in
the next step, so that this cannot be carried over. Departures: factors in float16 (float32 there); the rank follows the
budget (fixed there) by leaving out the last columns, of which QR makes the first ones independent.
"""

import dataclasses

import jax
import jax.numpy as jnp

from nscjax import check, layout, linalg
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.feedback import error_feedback as with_error_feedback
from nscjax.compress.low_rank import decompress, empty
from nscjax.compress.quantise import quantise_rows

BITS = 16
"""Of a factor's entry."""


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
        template = empty(spec, view, BITS, top)
        return jax.random.normal(key, (template.scale.shape[0], template.right.shape[1])), ()

    def compress(x, right, side):
        template = empty(x, view, BITS, top)
        matrix = views.matricise(x, template.view)
        peak = jnp.max(jnp.abs(matrix))
        matrix = matrix / jnp.where(peak > 0, peak, 1.0)
        affordable = layout.affordable_rank(template, side.budget_bytes)
        left = jnp.linalg.qr(linalg.product(matrix, right.T))[0].T
        image = linalg.product(left, matrix)
        left_codes, left_scale = quantise_rows(left, BITS)
        right_codes, right_scale = quantise_rows(image, BITS)
        payload = dataclasses.replace(
            template,
            rank=affordable if rank is None else jnp.where(affordable >= rank, rank, 0),
            scale=peak * left_scale * right_scale,
            left=left_codes,
            right=right_codes,
        )
        # A direction that has vanished stays as it was: a zero tensor must not end the iteration.
        lengths = jnp.linalg.norm(image, axis=1, keepdims=True)
        is_usable = jnp.isfinite(peak) & (lengths > 1e-6)
        return payload, jnp.where(is_usable, image / jnp.where(lengths > 0, lengths, 1.0), right)

    def min_bytes(spec):
        return layout.frame_bytes(empty(spec, view, BITS, top), rank=rank or 1)

    bare = Compressor(init, compress, decompress, layout.num_bytes, min_bytes)
    return with_error_feedback(bare) if error_feedback else bare
