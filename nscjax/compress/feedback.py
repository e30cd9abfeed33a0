"""Residual feedback as wrappers of any compressor: across steps, or per sample."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from nscjax import check
from nscjax.compress.base import Compressor
from nscjax.types import Array, PyTree


class ErrorFeedbackState(NamedTuple):
    """What the sender carries.

    Attributes:
        residual: what has not been sent yet, in the cut tensor's shape and dtype.
        enc: the wrapped compressor's sender state.
        dec: a copy of the receiver's state, so that the sender knows what the receiver holds.
    """

    residual: Array
    enc: PyTree
    dec: PyTree


def error_feedback(compressor: Compressor, decay: float = 1.0) -> Compressor:
    """Returns `compressor` with the residual of each message added to the next one, at the same batch position.

    With e the residual: y = x + decay * e is sent as y_hat, and e <- y - y_hat. The receiver is as before.

    On activations the next batch holds other samples; measure before use (`docs/results.md`).

    Args:
        compressor: any compressor.
        decay: share of the residual that is kept, in (0, 1].

    Source: Seide et al. 2014, "1-bit stochastic gradient descent"; with decay 1 as in Karimireddy et al. 2019.
    """
    check.fraction("decay", decay)

    def init(key, spec):
        enc, dec = compressor.init(key, spec)
        return ErrorFeedbackState(jnp.zeros(spec.shape, spec.dtype), enc, dec), dec

    def compress(x, state, side):
        target = x + jnp.asarray(decay, x.dtype) * state.residual
        payload, enc = compressor.compress(target, state.enc, side)
        sent, dec = compressor.decompress(payload, state.dec, side)
        return payload, ErrorFeedbackState(_finite(target - sent, state.residual), enc, dec)

    return compressor._replace(
        init=init, compress=compress, support=_unwrapped(compressor.support), penalty=_unwrapped(compressor.penalty)
    )


def _unwrapped(function: Callable | None) -> Callable | None:
    """Returns a function of a wrapped compressor whose last argument is a state, without the wrapper's part of it."""
    if function is None:
        return None

    @functools.wraps(function)
    def of_either_end(*args):
        *rest, state = args
        return function(*rest, state.enc if isinstance(state, ErrorFeedbackState) else state)

    return of_either_end


class DeltaState(NamedTuple):
    """What either end carries; the senders' and the receivers' caches are equal, message by message.

    Attributes:
        cache: [num_samples, ...] what the receiver holds of every sample, in the cut tensor's dtype.
        enc: the wrapped compressor's state, sender's end (empty at the receiver).
        dec: the wrapped compressor's state, receiver's end, at both.
    """

    cache: Array
    enc: PyTree
    dec: PyTree


def delta(compressor: Compressor, num_samples: int) -> Compressor:
    """Returns `compressor` sending the change of every sample since it was last seen.

    With h_i the cache of sample i at both ends: x_i - h_i is sent as d_i, and h_i <- h_i + d_i. Ids below 0 name
    samples that no cache holds (those of an evaluation): they are sent whole. The caches take `num_samples` cut
    tensors of one sample, twice, and inside a step that may be undone they are copied: time grows with `num_samples`.
    A penalty of the method's is left out: it is of the tensor, and what crosses is its change.

    Args:
        compressor: any compressor.
        num_samples: how many samples there are; ids are in [0, num_samples).

    Raises:
        InputError: `SideInfo.sample_ids` is None (when tracing).

    Source: Wang et al. 2022, AQ-SGD, arXiv 2206.01299, without its uncompressed first epoch.
    """
    check.count("num_samples", num_samples, 1)

    def held(cache, side):
        if side.sample_ids is None:
            raise check.error(
                "SideInfo.sample_ids", None, "int32 [batch]", "Per-sample feedback needs to know the samples."
            )
        ids = side.sample_ids
        known = (ids >= 0).reshape((-1,) + (1,) * (cache.ndim - 1))
        return jnp.where(known, cache[jnp.maximum(ids, 0)], 0), jnp.where(ids >= 0, ids, num_samples)

    def init(key, spec):
        enc, dec = compressor.init(key, spec)
        cache = jnp.zeros((num_samples, *spec.shape[1:]), spec.dtype)
        return DeltaState(cache, enc, dec), DeltaState(cache, (), dec)

    def receive(payload, state, side):
        before, ids = held(state.cache, side)
        change, dec = compressor.decompress(payload, state.dec, side)
        after = before + change
        # An id of num_samples is out of range: its row is dropped, so that unknown samples leave no trace.
        kept = _finite(after, before)
        return after, state._replace(cache=state.cache.at[ids].set(kept, mode="drop"), dec=dec)

    def compress(x, state, side):
        before, _ = held(state.cache, side)
        payload, enc = compressor.compress(x - before, state.enc, side)
        _, state = receive(payload, state, side)
        return payload, state._replace(enc=enc)

    return Compressor(init, compress, receive, compressor.num_bytes, compressor.min_bytes)


class EF21State(NamedTuple):
    """What either end carries; `held` is equal at both, message by message.

    Attributes:
        held: what the receiver holds, in the cut tensor's shape and dtype.
        enc: the wrapped compressor's sender state (empty at the receiver).
        dec: its receiver's, at both.
    """

    held: Array
    enc: PyTree
    dec: PyTree


def ef21(compressor: Compressor) -> Compressor:
    """Returns `compressor` sending the change since the message before: with h at both ends, h <- h + C(x - h).

    On activations h belongs to a position in the batch, and the next batch holds other samples there.

    Args:
        compressor: any compressor.

    Source: Richtarik et al. 2021, arXiv 2106.05203.
    """

    def init(key, spec):
        enc, dec = compressor.init(key, spec)
        held = jnp.zeros(spec.shape, spec.dtype)
        return EF21State(held, enc, dec), EF21State(held, (), dec)

    def receive(payload, state, side):
        change, dec = compressor.decompress(payload, state.dec, side)
        held = state.held + change
        return held, state._replace(held=_finite(held, state.held), dec=dec)

    def compress(x, state, side):
        payload, enc = compressor.compress(x - state.held, state.enc, side)
        _, state = receive(payload, state, side)
        return payload, state._replace(enc=enc)

    # Where the change was sent says nothing of where the tensor is: the gradient has a support of its own, and what
    # the tensor should be to cross better is another matter too.
    return compressor._replace(init=init, compress=compress, decompress=receive, support=None, penalty=None)


def _finite(new: Array, old: Array) -> Array:
    """Returns the new entries, the old ones where those are not finite: one bad message must not spoil all others."""
    return jnp.where(jnp.isfinite(new), new, old)


FEEDBACKS = ("none", "across_steps", "per_sample")
"""Feedback modes by their config names."""


def with_feedback(compressor: Compressor, mode: str, *, decay: float = 1.0, num_samples: int = 1) -> Compressor:
    """Returns `compressor` with the feedback `mode`: "none", "across_steps" (decay) or "per_sample" (num_samples)."""
    check.one_of("feedback", mode, FEEDBACKS)
    if mode == "across_steps":
        return error_feedback(compressor, decay)
    return delta(compressor, num_samples) if mode == "per_sample" else compressor
