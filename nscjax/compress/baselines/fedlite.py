"""FedLite: product quantisation of the activations, and a correction of the client's gradient.

Source: Wang et al. 2022, "FedLite: a scalable approach for federated learning on resource-constrained clients", arXiv
2201.11865, read through ADC's re-implementation (`methods/fedlite.py`): every sample is cut into subvectors, K-means
over all of a batch's gives a codebook, codebook and codes cross; the client adds (lambda / 2) ||x - x_hat||^2 to its
loss. Departures: the number of centroids is a power of two that follows the budget, and they cross in half precision
(float32 there); K-means assigns every subvector to one centroid (softly there), is warm, from the message before, and
is run on every n-th subvector (at most 16,384 of them), an empty cluster moves to a subvector; one group of
subvectors (R = 1, the source's default); the gradient may be compressed by any method (there it is sent whole); the
correction is the mean over the batch, as the loss is: summed, with the source's weight, training collapsed to chance.
K-means takes longer than the training step it is in (`benchmarks/device_part.py`): distances of all subvectors to all
centroids, whatever the arithmetic.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from nscjax import check, layout
from nscjax.compress.base import Compressor
from nscjax.types import Array, Shape

SAMPLE = 1 << 14
"""About how many subvectors K-means is run on: evenly spaced ones, all where there are not more."""

CHUNKS = 16
"""Distances of all subvectors to all centroids are computed in so many pieces: at once they would not fit a cache."""


@layout.payload(tag=13)
class Codebook:
    """Centroids, and every subvector's nearest.

    Attributes:
        rank: int32 scalar, bits of a code; there are 2**rank centroids.
        scale: float32 scalar, the largest magnitude of an entry.
        centroids: float16 [2**most, s], over the scale.
        codes: uint8 [most, ceil(N / 8)], bit planes of the codes of all N subvectors, least significant first.
        shape: the cut tensor's shape.
        dtype: its dtype's code in `layout.DTYPES`.
        subvector: s, the length of a subvector.
    """

    rank: Array = layout.array()
    scale: Array = layout.array()
    centroids: Array = layout.doubling()
    codes: Array = layout.ranked()
    shape: Shape = layout.static()
    dtype: int = layout.static()
    subvector: int = layout.static()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        if problem := layout.tensor_problem(self, max_bytes):
            return problem
        if type(self.subvector) is not int or not 1 <= self.subvector <= math.prod(self.shape[1:]):
            return f"its subvectors have {self.subvector!r} entries"
        if len(self.codes.shape) != 2 or not 1 <= self.codes.shape[0] <= 16:
            return f"its codes have shape {self.codes.shape}; allowed: 1 to 16 planes"
        return layout.arrays_problem(self, _empty(layout.tensor_spec(self), self.subvector, self.codes.shape[0]))


def fedlite(
    *, subvector: int = 8, bits: int | None = None, most_bits: int = 8, iterations: int = 2, weight: float = 5e-3
) -> Compressor:
    """Returns the FedLite compressor; its frames decode alone.

    Args:
        subvector: entries of a subvector, >= 1, clipped to a sample's; a sample is padded to a multiple of it.
        bits: log2 of the number of centroids; by default as many as the budget affords.
        most_bits: the most bits that the budget may choose, 1 to 16: time and memory grow as 2**most_bits.
        iterations: of K-means a message, >= 1, after a first one that moves empty clusters.
        weight: lambda of the correction, >= 0; 0 leaves it out.

    Raises:
        InputError: an argument out of range.
    """
    check.count("subvector", subvector, 1)
    check.count("iterations", iterations, 1)
    check.at_least("weight", weight, 0)
    name, given = ("most_bits", most_bits) if bits is None else ("bits", bits)
    most = check.one_of(name, given, range(1, 17))

    def init(key, spec):
        del key
        return jnp.zeros(_empty(spec, subvector, most).centroids.shape, jnp.float32), ()

    def compress(x, enc_state, side):
        template = _empty(x, subvector, most)
        affordable = layout.affordable_rank(template, side.budget_bytes)
        rank = affordable if bits is None else jnp.where(affordable >= bits, bits, 0)
        points = _subvectors(x.astype(jnp.float32), template.subvector)
        # Distances are squares: of numbers about 1 they stay within float32's range.
        peak = jnp.max(jnp.abs(points))
        unit = jnp.where(peak > 0, peak, 1.0)
        is_used = jnp.arange(1 << most) < jnp.left_shift(1, rank)
        centroids = _kmeans(points / unit, enc_state / unit, is_used, rank, side.key, iterations)
        # Codes of what the other end will have.
        halved = centroids.astype(jnp.float16)
        codes = _nearest(points / unit, halved.astype(jnp.float32), is_used)
        planes = jnp.packbits(((codes[None, :] >> jnp.arange(most)[:, None]) & 1).astype(bool), axis=-1)
        payload = Codebook(rank, peak, halved, planes, template.shape, template.dtype, template.subvector)
        return payload, jnp.where(jnp.isfinite(peak), centroids * unit, enc_state)

    def decompress(payload, dec_state, side):
        del side
        batch, width = payload.shape[0], math.prod(payload.shape[1:])
        num_points = batch * _num_subvectors(width, payload.subvector)
        bits_of = jnp.unpackbits(payload.codes, axis=-1, count=num_points).astype(jnp.int32)
        places = jnp.arange(payload.codes.shape[0])
        codes = jnp.sum(jnp.where(places < payload.rank, 1, 0)[:, None] * (bits_of << places[:, None]), axis=0)
        centroids = payload.centroids.astype(jnp.float32) * payload.scale
        rows = centroids[codes].reshape(batch, -1)[:, :width]
        x_hat = jnp.where(payload.rank > 0, rows, 0.0).reshape(payload.shape)
        return x_hat.astype(layout.DTYPES[payload.dtype]), dec_state

    def min_bytes(spec):
        return layout.frame_bytes(_empty(spec, subvector, most), rank=bits or 1)

    def penalty(x, payload, enc_state):
        del enc_state
        lost = x.astype(jnp.float32) - jax.lax.stop_gradient(decompress(payload, (), None)[0]).astype(jnp.float32)
        return weight / 2 * jnp.sum(jnp.square(lost)) / x.shape[0]

    return Compressor(init, compress, decompress, layout.num_bytes, min_bytes, penalty=penalty if weight > 0 else None)


def _kmeans(points: Array, centroids: Array, is_used: Array, rank: Array, key: Array, iterations: int) -> Array:
    """Returns the centroids after some of Lloyd's iterations on a sample of the points.

    A cluster without members, as all are at first, moves to one of the points, spread evenly over the sample.
    """
    num = points.shape[0]
    step = max(1, num // SAMPLE) | 1  # odd, so that it meets every channel of a power of two
    offset = jax.random.randint(key, (), 0, step)
    sample = jax.lax.dynamic_slice_in_dim(points, offset, (num - step) // step * step + 1)[::step]
    spread = (jnp.arange(len(centroids)) * len(sample)) >> rank
    spare = sample[jnp.minimum(spread, len(sample) - 1)]

    def move(_, centroids):
        nearest = _nearest(sample, centroids, is_used)
        counts = jax.ops.segment_sum(jnp.ones(len(sample), jnp.float32), nearest, len(centroids))
        sums = jax.ops.segment_sum(sample, nearest, len(centroids))
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], spare)

    return jax.lax.fori_loop(0, iterations + 1, move, centroids)


def _nearest(points: Array, centroids: Array, is_used: Array) -> Array:
    """Returns int32 [N]: the centroid nearest to every point, among those used."""
    lengths = jnp.where(is_used, jnp.sum(jnp.square(centroids), axis=1), jnp.inf)

    def nearest(chunk):
        products = jnp.matmul(chunk, centroids.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(lengths[None, :] - 2 * products, axis=1).astype(jnp.int32)

    num, width = points.shape
    size = -(-num // CHUNKS)
    padded = jnp.concatenate([points, jnp.zeros((size * CHUNKS - num, width), points.dtype)])
    return jax.lax.map(nearest, padded.reshape(CHUNKS, size, width)).reshape(-1)[:num]


def _num_subvectors(width: int, subvector: int) -> int:
    return -(-width // subvector)


def _subvectors(x: Array, subvector: int) -> Array:
    """Returns [N, s]: the samples cut into subvectors, the last one of each padded with zeros."""
    rows = x.reshape(x.shape[0], -1)
    padding = _num_subvectors(rows.shape[1], subvector) * subvector - rows.shape[1]
    return jnp.pad(rows, ((0, 0), (0, padding))).reshape(-1, subvector)


def _empty(spec: jax.ShapeDtypeStruct | Array, subvector: int, most: int) -> Codebook:
    width = math.prod(spec.shape[1:])
    subvector = min(subvector, width)
    num_points = spec.shape[0] * _num_subvectors(width, subvector)
    arrays: dict[str, Any] = {
        "rank": jax.ShapeDtypeStruct((), jnp.int32),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
        "centroids": jax.ShapeDtypeStruct((1 << most, subvector), jnp.float16),
        "codes": jax.ShapeDtypeStruct((most, -(-num_points // 8)), jnp.uint8),
    }
    return Codebook(**arrays, shape=tuple(spec.shape), dtype=layout.dtype_code(spec.dtype), subvector=subvector)
