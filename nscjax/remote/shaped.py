"""A way to a server that is as slow as a recorded link: for runs over 4G on one machine, without root."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nscjax import link as links
from nscjax.remote.transport import Reply, Transfer, Transport, UnreachableError


class Shaped:
    """Holds every message back for as long as the link would take for it; it has no say in what the server computes.

    Every byte that is handed to the transport counts. The traces run with the clock, from the first call on.
    """

    def __init__(
        self,
        way: Transport,
        up: links.Trace,
        down: links.Trace,
        latency_s: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Shapes a way.

        Args:
            way: to the server.
            up: the uplink's trace.
            down: the downlink's.
            latency_s: seconds that every message takes, whatever its size.
            clock: seconds.
            sleep: lets the clock go on; a virtual one is for tests.
        """
        self._way, self._up, self._down, self._latency_s = way, up, down, latency_s
        self._clock, self._sleep = clock, sleep
        self._started: float | None = None

    def call(self, request: bytes, timeout_s: float) -> Reply:
        """Returns the reply, see `nscjax.remote.transport.Transport`."""
        ends = self._clock() + timeout_s
        up = self._carry(self._up, request, ends)
        reply = self._way.call(request, max(ends - self._clock(), 0.0))
        return Reply(reply.data, up, self._carry(self._down, reply.data, ends))

    def close(self) -> None:
        """Lets go of the connection."""
        self._way.close()

    def _carry(self, trace: links.Trace, data: bytes, ends: float) -> Transfer:
        """Returns how a message went, after it went."""
        now = self._clock()
        self._started = now if self._started is None else self._started
        seconds = float(_seconds(trace, now - self._started, len(data)))
        wait = seconds + self._latency_s
        if now + wait > ends:
            self._sleep(max(ends - now, 0.0))
            raise UnreachableError(f"the shaped link takes {wait:.1f} s for {len(data)} bytes")
        self._sleep(wait)
        return Transfer(len(data), seconds)


@jax.jit
def _seconds(trace: links.Trace, at_s: jax.Array, num_bytes: jax.Array) -> jax.Array:
    """Returns the seconds that bytes take which leave at `at_s`."""
    return links.transfer(trace, links.advance(trace, links.start(), jnp.asarray(at_s, jnp.float32)), num_bytes)[1]
