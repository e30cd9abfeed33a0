"""SL-ACC: channels grouped by their entropy, each group with its own number of bits.

Source: arXiv 2508.12984, of which the abstract is public: Shannon entropy as a channel's importance, channels
clustered, bits by cluster. The rest is ours: the entropy of a channel is that of its magnitudes taken as a
distribution; it is blended with the mean of all messages so far, whose weight grows from 0 to 0.9; one-dimensional
K-means makes the groups; bits are in proportion to the group's mean entropy, clipped to 8, at the largest scale that
fits the budget; the quantiser is `nscjax.compress.banded`'s. Channels are the last axis.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.compress.banded import MOST_GROUPS, Bands, banded, by_group
from nscjax.compress.base import Compressor
from nscjax.compress.planes import MOST_BITS
from nscjax.types import Array

ITERATIONS = 10
"""Of K-means."""

LEAST_ENTROPY = 0.01
"""Bits added to every channel's entropy."""

MOST_HISTORY = 0.9
"""The largest weight of the mean entropy of the messages before."""


class EntropyState(NamedTuple):
    """What the sender carries.

    Attributes:
        mean: float32 [C], mean entropy of every channel over the messages so far.
        num_messages: float32 scalar, how many there were.
    """

    mean: Array
    num_messages: Array


def sl_acc(*, groups: int = 4) -> Compressor:
    """Returns the SL-ACC compressor.

    Args:
        groups: of channels, 1 to 256.

    Raises:
        InputError: `groups` out of range.
    """
    check.one_of("groups", groups, range(1, MOST_GROUPS + 1))

    def see(shape):
        channels = shape[-1]
        size = (channels, math.prod(shape[:-1]))

        def group(rows, state):
            now = entropy(rows)
            history = jnp.minimum(state.num_messages / (state.num_messages + 1), MOST_HISTORY)
            importance = (1 - history) * now + history * state.mean
            mean = (state.num_messages * state.mean + now) / (state.num_messages + 1)
            return kmeans(importance, groups), EntropyState(mean, state.num_messages + 1)

        def bits(rows, group):
            # A channel of one magnitude alone has no entropy, and yet something to say.
            importance = by_group(entropy(rows), group, groups)[group] + LEAST_ENTROPY
            share = importance / jnp.max(importance)
            # From no bit for any to 8 for all; of a group the first channels get them first.
            most = (MOST_BITS + 1) / jnp.min(share)
            offset = jnp.arange(channels, dtype=jnp.float32) / channels

            def bits_of(t):
                return jnp.clip(jnp.floor(share * (t + 1) / 2 * most - offset), 0, MOST_BITS).astype(jnp.int32)

            return bits_of

        return Bands(
            size=size,
            num_groups=groups,
            forward=lambda x: x.reshape(-1, channels).T,
            inverse=lambda rows: rows.T.reshape(shape),
            group=group,
            bits=bits,
            state=EntropyState(jnp.zeros(channels, jnp.float32), jnp.zeros((), jnp.float32)),
        )

    return banded(see)


def entropy(rows: Array) -> Array:
    """Returns the Shannon entropy in bits, [n], of the magnitudes of every row [n, w] taken as a distribution."""
    magnitude = jnp.abs(rows)
    # Over the peak first: sums of huge numbers overflow.
    magnitude = magnitude / jnp.maximum(jnp.max(magnitude, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    share = magnitude / jnp.maximum(jnp.sum(magnitude, axis=1, keepdims=True), 1e-30)
    return -jnp.sum(jnp.where(share > 0, share * jnp.log2(jnp.where(share > 0, share, 1.0)), 0.0), axis=1)


def kmeans(values: Array, num_groups: int) -> Array:
    """Returns int32 [n]: the cluster of every number, clusters begun at evenly spaced quantiles."""
    centres = jnp.quantile(values, (jnp.arange(num_groups, dtype=jnp.float32) + 0.5) / num_groups)

    def nearest(centres):
        return jnp.argmin(jnp.abs(values[:, None] - centres[None, :]), axis=1)

    def move(_, centres):
        members = jax.nn.one_hot(nearest(centres), num_groups, dtype=jnp.float32)
        counts = jnp.sum(members, axis=0)
        return jnp.where(counts > 0, values @ members / jnp.maximum(counts, 1), centres)

    return nearest(jax.lax.fori_loop(0, ITERATIONS, move, centres)).astype(jnp.int32)
