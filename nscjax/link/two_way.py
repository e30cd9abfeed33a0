"""A client's link to its server: two directions, their latencies, and the time both sides compute.

One step on the virtual clock: the client computes, its frame goes up, the server computes, its frame comes
down. Both directions' clocks advance by all of it. A message's seconds go from the first bit sent to the last
received: transfer and latency, without computing.
"""

from typing import NamedTuple

import jax.numpy as jnp

from nscjax.link.clock import Clock, advance, start, transfer
from nscjax.link.estimate import Estimator, budget_bytes
from nscjax.link.trace import UNLIMITED_MBIT_PER_S, Trace
from nscjax.types import Array, PyTree


class Link(NamedTuple):
    """The fixed facts of a link; all of its leaves may be traced."""

    up: Trace
    down: Trace
    up_latency_s: Array | float = 0.0  # [] float32: added to every message, whatever its size
    down_latency_s: Array | float = 0.0
    client_step_s: Array | float = 0.0  # [] float32: computing before the uplink frame leaves
    server_step_s: Array | float = 0.0  # [] float32: computing before the downlink frame leaves


class LinkState(NamedTuple):
    """Where both directions are in their traces, and what has been seen of them."""

    up_clock: Clock
    down_clock: Clock
    up_estimate: PyTree  # state of the estimator
    down_estimate: PyTree


def init(
    link: Link,
    estimator: Estimator,
    up_mbit_per_s: Array | float = 1.0,
    down_mbit_per_s: Array | float = 1.0,
    start_s: Array | float = 0.0,
) -> LinkState:
    """Returns the state before the first message.

    Args:
        link: the link.
        estimator: follows each direction by itself.
        up_mbit_per_s: rate to reckon with until a transfer was seen; ignored where the link is unlimited.
        down_mbit_per_s: the same for the downlink.
        start_s: where in both traces to begin, so that clients need not all see the same stretch.
    """

    def estimate(trace: Trace, mbit_per_s: Array | float) -> PyTree:
        unlimited = trace.mbit_per_s[0] >= UNLIMITED_MBIT_PER_S
        return estimator.init(jnp.where(unlimited, UNLIMITED_MBIT_PER_S, mbit_per_s))

    return LinkState(
        up_clock=advance(link.up, start(), start_s),
        down_clock=advance(link.down, start(), start_s),
        up_estimate=estimate(link.up, up_mbit_per_s),
        down_estimate=estimate(link.down, down_mbit_per_s),
    )


def budgets(link: Link, estimator: Estimator, state: LinkState, deadline_s: Array | float) -> tuple[Array, Array]:
    """Returns the most bytes [] int32 that the next uplink and the next downlink message may have.

    Each is expected to arrive within `deadline_s` of leaving. Called again after `send_up`, it knows what was
    seen.
    """
    up_mbit_per_s = estimator.mbit_per_s(state.up_estimate)
    down_mbit_per_s = estimator.mbit_per_s(state.down_estimate)
    return (
        budget_bytes(up_mbit_per_s, deadline_s, link.up_latency_s),
        budget_bytes(down_mbit_per_s, deadline_s, link.down_latency_s),
    )


def send_up(link: Link, estimator: Estimator, state: LinkState, num_bytes: Array | int) -> tuple[LinkState, Array]:
    """Lets the client compute and its frame of `num_bytes` go up; returns state and message's seconds."""
    leaves = advance(link.up, state.up_clock, link.client_step_s)
    up_clock, transfer_s = transfer(link.up, leaves, num_bytes)
    seconds = transfer_s + link.up_latency_s
    state = LinkState(
        up_clock=advance(link.up, up_clock, link.up_latency_s),
        down_clock=advance(link.down, state.down_clock, link.client_step_s + seconds),
        up_estimate=estimator.update(state.up_estimate, num_bytes, transfer_s),
        down_estimate=state.down_estimate,
    )
    return state, seconds


def send_down(link: Link, estimator: Estimator, state: LinkState, num_bytes: Array | int) -> tuple[LinkState, Array]:
    """Lets the server compute and its frame of `num_bytes` come down; returns state and message's seconds."""
    leaves = advance(link.down, state.down_clock, link.server_step_s)
    down_clock, transfer_s = transfer(link.down, leaves, num_bytes)
    seconds = transfer_s + link.down_latency_s
    state = LinkState(
        up_clock=advance(link.up, state.up_clock, link.server_step_s + seconds),
        down_clock=advance(link.down, down_clock, link.down_latency_s),
        up_estimate=state.up_estimate,
        down_estimate=estimator.update(state.down_estimate, num_bytes, transfer_s),
    )
    return state, seconds


def exchange(
    link: Link, estimator: Estimator, state: LinkState, up_bytes: Array | int, down_bytes: Array | int
) -> tuple[LinkState, Array, Array]:
    """Plays one whole step, `send_up` then `send_down`; returns the state and both messages' seconds."""
    state, up_seconds = send_up(link, estimator, state, up_bytes)
    state, down_seconds = send_down(link, estimator, state, down_bytes)
    return state, up_seconds, down_seconds
