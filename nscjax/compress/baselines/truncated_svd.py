"""Truncated SVD: the best matrix of its rank (Eckart and Young 1936), the bound of every method of low rank.

It is here to be compared with: a full SVD of the cut tensor takes longer than the rest of the step.
"""

import dataclasses

import jax.numpy as jnp

from nscjax import check, layout
from nscjax.compress import view as views
from nscjax.compress.base import Compressor
from nscjax.compress.low_rank import decompress, empty
from nscjax.compress.quantise import pack, quantise_rows


def truncated_svd(
    *, rank: int | None = None, max_rank: int = 16, factor_bits: int = 16, view: str = "auto"
) -> Compressor:
    """Returns the compressor by truncated SVD; its frames decode alone.

    Args:
        rank: components sent where the budget affords them, >= 1; by default as many as it affords.
        max_rank: the most components, if `rank` is not given.
        factor_bits: 4, 8 or 16 bits a factor entry; each factor is quantised for itself.
        view: a view's name or "auto", see `nscjax.compress.view`.

    Raises:
        InputError: an argument out of range.
    """
    top = check.count("rank", rank, 1) if rank is not None else check.count("max_rank", max_rank, 1)
    check.one_of("factor_bits", factor_bits, (4, 8, 16))

    def init(key, spec):
        del key
        empty(spec, view, factor_bits, top)
        return (), ()

    def compress(x, enc_state, side):
        template = empty(x, view, factor_bits, top)
        matrix = views.matricise(x, template.view)
        peak = jnp.max(jnp.abs(matrix))
        left, lengths, right = jnp.linalg.svd(matrix / jnp.where(peak > 0, peak, 1.0), full_matrices=False)
        num = template.scale.shape[0]
        left_codes, left_scale = quantise_rows(left[:, :num].T, factor_bits)
        right_codes, right_scale = quantise_rows(lengths[:num, None] * right[:num], factor_bits)
        affordable = layout.affordable_rank(template, side.budget_bytes)
        payload = dataclasses.replace(
            template,
            rank=affordable if rank is None else jnp.where(affordable >= rank, rank, 0),
            scale=peak * left_scale * right_scale,
            left=pack(left_codes, factor_bits),
            right=pack(right_codes, factor_bits),
        )
        return payload, enc_state

    def min_bytes(spec):
        return layout.frame_bytes(empty(spec, view, factor_bits, top), rank=rank or 1)

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes)
