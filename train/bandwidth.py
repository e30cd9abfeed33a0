"""What the client has seen of a real link, and what its next messages may have: the budgets of a two-party run."""

import collections

import jax
import jax.numpy as jnp

from nscjax import link as links
from nscjax.layout import MAX_BYTES
from nscjax.remote import Exchange

ROUND_TRIPS = 50
"""Of so many exchanges the fastest tells the latency."""


GROWTH, ALWAYS_BYTES = 4, 1 << 14
"""A frame may be so many times as long as the longer of the two before it, or so long in any case: a short one can pass
at once whatever the link carries, and says little of it."""


class Bandwidth:
    """Follows both directions of a link by the transfers that were made on it; nothing is sent to probe it."""

    def __init__(self, estimator: links.Estimator, deadline_s: float | None, initial_mbps: tuple[float, float]) -> None:
        """Makes one that has seen nothing.

        Args:
            estimator: of either direction.
            deadline_s: seconds that a message may take, or None.
            initial_mbps: (up, down) to reckon with until a transfer was seen.
        """
        self._update, self._rate = jax.jit(estimator.update), jax.jit(estimator.mbit_per_s)
        self._states = [estimator.init(jnp.float32(mbps)) for mbps in initial_mbps]
        self._rates = self._rated()
        self._deadline_s = deadline_s
        self._round_trips: collections.deque[float] = collections.deque(maxlen=ROUND_TRIPS)
        self._envelope_bytes: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        self._frames: list[collections.deque[int]] = [collections.deque([MAX_BYTES], maxlen=2) for _ in range(2)]

    @property
    def latency_s(self) -> float:
        """Seconds that a message takes, whatever its size: half the shortest round trip of late."""
        return min(self._round_trips, default=0.0) / 2

    def rates(self) -> tuple[float, float]:
        """Returns (up, down) what to reckon with, in Mbit/s."""
        return self._rates

    def budgets(self, caps: tuple[int, int], kind: str = "step") -> tuple[int, int]:
        """Returns (up, down) the largest frames that are expected to arrive in time, in bytes.

        Args:
            caps: (up, down) what the config allows.
            kind: of the request.
        """
        if self._deadline_s is None:
            return caps
        up, down = (
            max(min(cap, most, int(links.budget_bytes(rate, self._deadline_s, self.latency_s)) - envelope), 0)
            for cap, most, rate, envelope in zip(caps, self._most(), self.rates(), self._envelope_bytes[kind])
        )
        return up, down

    def saw(self, exchange: Exchange, compute_s: float, frame_bytes: tuple[int, int], kind: str = "step") -> float:
        """Takes in one exchange; returns the seconds that the link took for both of its messages.

        Args:
            exchange: as it was seen.
            compute_s: of it, seconds that the server was busy.
            frame_bytes: (up, down) the bytes of the frames; all else is envelope.
            kind: of the request: envelopes of one kind are alike.
        """
        link_s = max(exchange.seconds - max(compute_s, 0.0), 0.0)
        transfers = exchange.up, exchange.down
        round_trip_s = link_s - sum(transfer.seconds for transfer in transfers)
        if exchange.attempts == 1 and round_trip_s > 0:  # an answer from memory says nothing
            self._round_trips.append(round_trip_s)
        self._states = [self._update(state, *transfer) for state, transfer in zip(self._states, transfers)]
        self._rates = self._rated()  # once an exchange: budgets, the request and the server's view all ask for them
        self._envelope_bytes[kind] = [
            max(transfer.num_bytes - frame, 0) if transfer.num_bytes else before
            for transfer, frame, before in zip(transfers, frame_bytes, self._envelope_bytes[kind])
        ]
        for frames, frame, transfer in zip(self._frames, frame_bytes, transfers):
            if transfer.num_bytes:
                frames.append(frame)
        return link_s

    def _most(self) -> list[int]:
        """Returns (up, down) the longest frames that those before them let be, in bytes."""
        return [max(GROWTH * max(frames), ALWAYS_BYTES) for frames in self._frames]

    def _rated(self) -> tuple[float, float]:
        up, down = (float(self._rate(state)) for state in self._states)
        return up, down
