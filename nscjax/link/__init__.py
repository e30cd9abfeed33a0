"""Simulated links on a virtual clock, and how many bytes the next message may have.

Trace and clock are arrays in the step's state, so a training step under a link stays one compiled program:
nothing waits for the host, and equal runs see equal links. `trace` makes bandwidth traces, `clock` sends
bytes along one, `estimate` turns past transfers into a byte budget, `two_way` joins them into a client's link
to its server.
"""

from nscjax.link.clock import Clock, advance, start, transfer
from nscjax.link.estimate import ESTIMATORS, Estimator, budget_bytes, ewma, harmonic, quantile
from nscjax.link.trace import (
    UNLIMITED_MBIT_PER_S,
    Trace,
    constant,
    load_trace,
    lte_like,
    read_trace,
    unlimited,
    write_trace,
)
from nscjax.link.two_way import Link, LinkState, budgets, exchange, init, send_down, send_up

__all__ = [
    "ESTIMATORS",
    "UNLIMITED_MBIT_PER_S",
    "Clock",
    "Estimator",
    "Link",
    "LinkState",
    "Trace",
    "advance",
    "budget_bytes",
    "budgets",
    "constant",
    "ewma",
    "exchange",
    "harmonic",
    "init",
    "load_trace",
    "lte_like",
    "quantile",
    "read_trace",
    "send_down",
    "send_up",
    "start",
    "transfer",
    "unlimited",
    "write_trace",
]
