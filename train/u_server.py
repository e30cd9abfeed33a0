"""The server's role with a U-shaped network: it relays what comes up to the client's last layers, and is sent no label.

A step is two requests: `forward`, and `backward` with the gradient of the second cut. What a `forward` has changed
counts with its `backward` alone: a run goes on from whole steps.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from nscjax import remote, split, u_shaped, wire
from nscjax.compress.base import Dense
from nscjax.types import PyTree
from train import messages, party
from train import state as states
from train.server import Server, allowed, arrived, ids_of, rank_of, require_batch, require_fits


class _Relayed(NamedTuple):
    """What a `forward` leaves for its `backward`."""

    step: int
    server: split.Party
    kept: u_shaped.Relay
    onward: PyTree
    mirror: PyTree
    up: split.Message
    forth: split.Message
    sample_ids: Any
    budgets: tuple[np.int32, np.int32]
    mbps: tuple[float, float]
    waited_s: float


class UServer(Server):
    """What the server holds, and how it answers; requests come one at a time."""

    requests, answers = messages.U_REQUESTS, messages.U_ANSWERS
    _relayed: _Relayed | None = None

    def _hello(self, client: str, run: str, **about: Any) -> dict[str, Any]:
        """Agrees on a common step; half a step that was made is forgotten."""
        self._relayed = None
        return super()._hello(client, run, **about)

    def _forward(
        self,
        *,
        step: int,
        frame: bytes,
        ids: bytes,
        up_budget: int,
        down_budget: int,
        up_mbps: float,
        down_mbps: float,
    ) -> dict[str, Any]:
        """Runs the server's layers on a client's message, and sends on what they return."""
        made = self._made()
        first, second = made.setup.cuts
        self._require_at(step)
        started = time.monotonic()
        waited_s, self._waiting_s = self._waiting_s, 0.0
        require_fits(frame, first.caps[0], self._config.compress.up)
        payload = wire.decode(frame, like=made.layouts["up"])
        sample_ids = ids_of(ids, first.spec.shape[0], len(self._dataset.x_train), self._needs_ids)
        up, down = allowed((up_budget, down_budget), (first.caps[0], second.caps[0]))
        number, state = np.int32(step), self._state
        onward, kept, moved = made.parts.relay(state.party, number, payload, sample_ids, up, down)
        message, mirror = made.echoes["second_down"](
            onward, kept.pending.smashed, state.mirror[1], number, sample_ids, down
        )
        distortion = float(message.distortion)
        reply = wire.encode(jax.device_get(onward))
        self._relayed = _Relayed(
            step, moved, kept, onward, mirror, arrived(frame, payload), message._replace(num_bytes=len(reply)),
            sample_ids, (up, down), (up_mbps, down_mbps), waited_s,
        )  # fmt: skip
        found = {"distortion": distortion, "rank": rank_of(message), "compute_s": time.monotonic() - started}
        if not np.isfinite(distortion):
            self._relayed = None
            return found | {"frame": b"", "distortion": 0.0, "broken": 0}
        return found | {"frame": reply, "broken": -1}

    def _backward(self, *, step: int, frame: bytes, up_budget: int, down_budget: int) -> dict[str, Any]:
        """Carries the gradient of the second cut through the server's layers, and updates them."""
        made = self._made()
        first, second = made.setup.cuts
        self._require_at(step)
        relayed = self._relayed
        if relayed is None or relayed.step != step:
            raise remote.StrayedError("a step begins with its forward request")
        started = time.monotonic()
        waited_s, self._waiting_s = relayed.waited_s + self._waiting_s, 0.0
        require_fits(frame, second.caps[1], self._config.compress.second_up)
        payload = wire.decode(frame, like=made.layouts["second_up"])
        up, down = allowed((up_budget, down_budget), (second.caps[1], first.caps[1]))
        number, state, ids = np.int32(step), self._state, relayed.sample_ids
        given, moved, optimiser = made.parts.give_back(
            relayed.server, state.optimiser, number, relayed.kept, payload, ids, up, down
        )
        message, mirror = made.echoes["down"](relayed.server, relayed.kept, given, state.mirror[0], number, ids, down)
        distortion, *is_finite = jax.device_get((message.distortion, given.are_grads_finite, given.is_half_finite))
        # In the order of `TENSORS`: gradient of the cut, the server's gradients, its updated half.
        checked = {2: np.isfinite(distortion), 4: is_finite[0], 6: is_finite[1]}
        broken = next((place for place, fine in checked.items() if not fine), -1)
        if broken >= 0:
            return {"frame": b"", "distortion": 0.0, "rank": -1, "broken": broken,
                    "compute_s": time.monotonic() - started, "wants_save": False}  # fmt: skip
        reply = wire.encode(jax.device_get(given.payload))
        self._state = party.PartyState(moved, optimiser, (mirror, relayed.mirror), state.step + 1)
        self._relayed = None
        unknown: Any = None  # loss and accuracy are the client's
        on: Any = relayed.budgets
        found: Any = {
            "up": relayed.up, "down": message._replace(num_bytes=len(reply)), "up_budget_bytes": on[0],
            "down_budget_bytes": down, "second_up": arrived(frame, payload), "second_down": relayed.forth,
            "second_up_budget_bytes": up, "second_down_budget_bytes": on[1], "link_seconds": 0.0, "broken": -1,
        }  # fmt: skip
        self._count(states.Metrics(loss=unknown, accuracy=unknown, **found), waited_s, *relayed.mbps)
        return {"frame": reply, "distortion": float(distortion), "rank": rank_of(message), "broken": -1,
                "compute_s": time.monotonic() - started, "wants_save": self._is_ending}  # fmt: skip

    def _pass_on(self, *, step: int, batch: int, frame: bytes, smashed: bytes) -> dict[str, Any]:
        """Runs the server's layers on one batch of an evaluation, and sends on what they return."""
        made = self._made()
        self._require_at(step)
        require_batch(batch, 1, made.setup.cuts[0].spec.shape[0])
        own = self._state.party
        if batch == 0:
            self._grading = own.up
        elif self._grading is None:
            raise remote.StrayedError("an evaluation begins with its first batch")
        payload = wire.decode(frame, like=made.layouts["up"])
        whole = wire.decode(smashed, like=self._whole).values if smashed else None
        assert self._grade_parts.relay is not None
        onward, features, self._grading, _ = self._grade_parts.relay(
            own, self._grading, payload, whole, np.int32(batch)
        )
        alone = b"" if features is None else wire.encode(jax.device_get(Dense(values=features)))
        return {"frame": wire.encode(jax.device_get(onward)), "smashed": alone}
