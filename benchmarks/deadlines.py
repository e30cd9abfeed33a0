"""What share of messages arrives in time on recorded links, and how much of the link they use, by estimator.

    python benchmarks/deadlines.py --traces DIR [--messages 400]

On every trace a sender sends message after message, each as large as its estimator expects to arrive within the
deadline, with a pause for computing between them; nothing of the link's future is known. In time is a message that took
no longer than the deadline; used are the bytes that came in time, of all that the link could have carried so. Beside
them, messages of one size: the largest with which as many are in time as with the strictest estimator, chosen after the
fact. Virtual clock. It writes `benchmarks/results/deadlines.json`.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from record import write
from rich.progress import track

from nscjax import link as links
from nscjax.types import Array

DEADLINES_S = (0.2, 1.0)
LATENCY_S = 0.03
PAUSE_S = 0.35
COLD_MESSAGES = 5
LARGEST = 1 << 22
"""Bytes: the raw float32 size of the bench's cut tensor."""

EMPTY_FRAME = 64
"""Bytes: what crosses where the budget affords nothing, and by which a sender finds that the link is back."""

ESTIMATORS = {
    "ewma": links.ewma(),
    "harmonic": links.harmonic(),
    "quantile": links.quantile(),
    "quantile, late_share 0.05": links.quantile(miss=0.05),
}
STRICTEST = "quantile, late_share 0.05"


def carried(trace: links.Trace, clock: links.Clock, seconds: Array | float) -> Array:
    """Returns the most bytes that a link carries from now on in some seconds, int32."""

    def halve(_, limits):
        low, high = limits
        middle = (low + high) // 2
        fits = links.transfer(trace, clock, middle)[1] <= seconds
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    return jax.lax.fori_loop(0, 30, halve, (jnp.int32(0), jnp.int32(1 << 30)))[0]


@functools.partial(jax.jit, static_argnames=("deadline_s", "num_messages", "estimator"))
def sent(
    trace: links.Trace, deadline_s: float, num_messages: int, estimator: links.Estimator | None, size: Array | int = 0
) -> dict[str, Array]:
    """Returns the shares in time and used of messages that an estimator sizes, or that have one size, in bytes."""

    def send(carry, _):
        clock, state = carry
        num_bytes = jnp.asarray(size, jnp.int32)
        if estimator is not None:
            num_bytes = links.budget_bytes(estimator.mbit_per_s(state), deadline_s, LATENCY_S)
        num_bytes = jnp.clip(num_bytes, EMPTY_FRAME, LARGEST)
        most = carried(trace, clock, deadline_s - LATENCY_S)
        after, seconds = links.transfer(trace, clock, num_bytes)
        if estimator is not None:
            state = estimator.update(state, num_bytes, seconds)
        in_time = seconds + LATENCY_S <= deadline_s
        came = jnp.where(in_time, num_bytes, 0)
        return (links.advance(trace, after, jnp.float32(PAUSE_S)), state), (in_time, came, jnp.minimum(most, LARGEST))

    state = () if estimator is None else estimator.init(jnp.float32(1.0))
    _, found = jax.lax.scan(send, (links.start(), state), None, length=num_messages)
    in_time, came, most = (values[COLD_MESSAGES:].astype(jnp.float32) for values in found)
    return {"in_time": jnp.mean(in_time), "used": jnp.sum(came) / jnp.sum(most)}


def one_size(trace: links.Trace, deadline_s: float, num_messages: int, in_time: float) -> dict[str, float]:
    """Returns the shares of the largest messages of one size of which at least the share `in_time` is in time."""
    send = functools.partial(sent, trace, deadline_s, num_messages, None)
    low, high = 1, LARGEST  # shares fall with the size, but for the chance of when messages leave
    while high - low > max(low // 50, 1):
        middle = int((low * high) ** 0.5) + 1
        low, high = (middle, high) if send(middle)["in_time"] >= in_time else (low, middle)
    return {"size": low} | jax.tree.map(float, send(low))


def main() -> None:
    """Measures every trace and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, required=True, help="folder of CSV traces (time_s,mbit_per_s)")
    parser.add_argument("--messages", type=int, default=400)
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    for deadline_s in DEADLINES_S:
        rows[str(deadline_s)] = {}
        for path in track(sorted(options.traces.glob("*.csv")), description=f"{deadline_s} s"):
            trace = links.read_trace(path)
            found = {
                name: sent(trace, deadline_s, options.messages, estimator) for name, estimator in ESTIMATORS.items()
            }
            found = jax.tree.map(float, found)
            same = one_size(trace, deadline_s, options.messages, found[STRICTEST]["in_time"])
            rows[str(deadline_s)][path.stem] = found | {"one size": same}
    write("deadlines", rows, seeds=[])
    print(rows)


if __name__ == "__main__":
    main()
