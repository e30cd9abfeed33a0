"""The client's role with a U-shaped network: it holds the first layers and the last, and sends no label."""

from typing import Any

import jax
import numpy as np

from nscjax import wire
from nscjax.compress.base import Dense
from train import evaluate, journal, messages, party
from train import state as states
from train.client import Client, fetched, one_ahead, told
from train.data.batches import num_eval_steps

SHARED = (
    "step", "epoch", "total_up_bytes", "total_down_bytes", "total_link_seconds", "eval_up_bytes", "eval_down_bytes",
    "raw_up_bytes", "raw_down_bytes", "ratio", "up_skipped", "down_skipped", "steps", "seed", "wall_seconds",
    "client_params_sha256",
)  # fmt: skip
"""Fields of a summary that the server is told."""


class UClient(Client):
    """How the client makes a step, and an evaluation, with the server."""

    def advance(self, state: party.PartyState, step: int) -> tuple[party.PartyState, states.Metrics]:
        """Makes one step with the server: forward, the loss here, backward."""
        made, number = self._share, np.int32(step)
        first, second = made.setup.cuts
        x, y, ids = self._batch(step)
        budgets = self._link.budgets((first.caps[0], second.caps[0]), "forward")
        up, on = map(np.int32, budgets)
        payload, pending, sender = made.parts.send(state.party, number, x, ids, up)
        values = fetched(payload, states.TENSORS[0])
        # Under way while the server computes.
        sent_up, up_mirror = made.echoes["up"](payload, pending.smashed, state.mirror[0], number, ids, up)
        self._begin(step + 1)
        frame = wire.encode(values)
        request = {
            "step": step, "frame": frame, "ids": messages.int32_bytes(ids) if self._needs_ids else b"",
            "up_budget": budgets[0], "down_budget": budgets[1],
        }  # fmt: skip
        request |= dict(zip(("up_mbps", "down_mbps"), self._link.rates()))
        answer, exchange = self._session.ask("forward", request, messages.U_ANSWERS["forward"])
        onward = self._reply(answer, "second_down", budgets[1])
        seconds = self._link.saw(exchange, answer["compute_s"], (len(frame), len(answer["frame"])), "forward")
        forth = told(answer, onward)

        budgets = self._link.budgets((second.caps[1], first.caps[1]), "backward")
        back, down = map(np.int32, budgets)
        turned, kept, sender = made.parts.turn(sender, number, pending, onward, y, ids, on, back)
        if not np.isfinite(turned.loss):
            raise journal.Broken(states.TENSORS[1])
        values = fetched(turned.payload, states.TENSORS[2])
        sent_back, back_mirror = made.echoes["second_up"](
            payload, onward, sender.up[1], turned.payload, turned.features_grad, state.mirror[1], number, ids, back
        )
        back_frame = wire.encode(values)
        request = {"step": step, "frame": back_frame, "up_budget": budgets[0], "down_budget": budgets[1]}
        answer, exchange = self._session.ask("backward", request, messages.U_ANSWERS["backward"])
        self._wants_save = answer["wants_save"]
        reply = self._reply(answer, "down", budgets[1])
        sizes = len(back_frame), len(answer["frame"])
        seconds += self._link.saw(exchange, answer["compute_s"], sizes, "backward")
        receipt, moved, optimiser = made.parts.receive(sender, state.optimiser, number, kept, reply, ids, down)
        distortions, *is_fine = jax.device_get(
            ((sent_up.distortion, sent_back.distortion), receipt.are_grads_finite, receipt.is_half_finite)
        )
        # In the order of `TENSORS`: activations, gradient of the cut, the client's gradients, its updated half.
        checked = *np.isfinite(distortions), *is_fine
        broken = next((place for place, fine in zip((0, 2, 3, 5), checked) if not fine), -1)
        found: Any = {
            "loss": turned.loss, "accuracy": turned.accuracy, "link_seconds": seconds, "broken": broken,
            "up": sent_up._replace(num_bytes=len(frame)), "up_budget_bytes": up,
            "second_down": forth, "second_down_budget_bytes": on,
            "second_up": sent_back._replace(num_bytes=len(back_frame)), "second_up_budget_bytes": back,
            "down": told(answer, reply), "down_budget_bytes": down,
        }  # fmt: skip
        return (
            party.PartyState(moved, optimiser, (up_mirror, back_mirror), state.step + 1),
            states.Metrics(**found),
        )

    def score(self, state: party.PartyState) -> dict[str, Any]:
        """Returns the fields of an evaluation, whose batches the server passes on."""
        num_samples, size = len(self._test[0]), self._config.train.batch_size
        num_batches = num_eval_steps(num_samples, size)
        own, num_bytes, alone = state.party, [0, 0], self._config.remote.eval_uncompressed
        enc, dec = own.up
        sums = evaluate.no_sums(self._num_classes)
        features_like = jax.eval_shape(lambda values: Dense(values=values), self._share.setup.cuts[1].spec)
        for batch, shown in enumerate(one_ahead(self._presented(own, enc, num_batches))):
            frame = wire.encode(jax.device_get(shown.payload))
            whole = wire.encode(jax.device_get(Dense(values=shown.smashed))) if alone else b""
            request = {"step": int(state.step), "batch": batch, "frame": frame, "smashed": whole}
            answer, _ = self._session.ask("pass_on", request, messages.U_ANSWERS["pass_on"])
            onward = wire.decode(answer["frame"], like=self._share.layouts["second_down"])
            features = wire.decode(answer["smashed"], like=features_like).values if alone else None
            dec, sums = self._eval.grade(own, dec, sums, onward, features, shown.labels, shown.mask, np.int32(batch))
            num_bytes[0] += len(frame)
            num_bytes[1] += len(answer["frame"])
            self._terminal.evaluating(batch + 1, num_batches)
        found = evaluate.scores(sums, num_samples)
        if not alone:
            found["accuracy_uncompressed"] = None
        return found | {"eval_up_bytes": num_bytes[0], "eval_down_bytes": num_bytes[1]}

    def shared(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Returns what of a summary the server is told: bytes, steps, time; nothing that labels had a part in."""
        return {name: summary.get(name) for name in SHARED}
