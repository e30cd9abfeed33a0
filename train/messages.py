"""What two parties say to each other: the bodies of requests and answers, by kind.

A run begins with `hello`, at which they compare what they are about and agree on a common step; then comes `step` after
`step`, with `grade` for evaluations and `save` for checkpoints between them; `goodbye` ends it, and `close` says that
its answer came.
"""

from typing import Any

import numpy as np

from nscjax.remote import EnvelopeError
from nscjax.remote.envelope import Schema

REQUESTS: dict[str, Schema] = {
    "hello": {
        "protocol": int, "config": str, "sample_shape": list, "is_image": bool, "num_train": int, "num_test": int,
        "num_classes": int, "saved": list,
    },
    "step": {
        "step": int, "frame": bytes, "labels": bytes, "ids": bytes, "up_budget": int, "down_budget": int,
        "up_mbps": float, "down_mbps": float,
    },
    "grade": {"step": int, "batch": int, "frame": bytes, "smashed": bytes, "labels": bytes, "num_real": int},
    "scores": {"num_samples": int},
    "save": {"step": int},
    "goodbye": {"step": int, "digest": str, "summary": str},
    "close": {},
}  # fmt: skip
"""The fields of every request. Frames are `nscjax.wire`'s; `labels` and `ids` are little-endian int32. `labels` is
empty where the server has them, `ids` where neither it nor a method needs to know the samples, `smashed` where the cut
does not also cross as it is. The budgets are bytes, what the client's link is expected to carry in time; `up_mbps` and
`down_mbps` what the client has measured of it."""

ANSWERS: dict[str, Schema] = {
    "hello": {"step": int},
    "step": {
        "frame": bytes, "loss": float, "accuracy": float, "distortion": float, "rank": int, "broken": int,
        "compute_s": float, "wants_save": bool,
    },
    "grade": {},
    "scores": {
        "loss": (float, type(None)), "accuracy": float, "balanced_accuracy": float, "accuracy_uncompressed": float,
    },
    "save": {"saved": bool},
    "goodbye": {"digest": str},
    "close": {},
}  # fmt: skip
"""The fields of every answer. `broken` is a position in `train.state.TENSORS`, or -1; `rank` is -1 for a method without
one; `compute_s` are the seconds that the server was busy with it; `wants_save` says that the server is about to end,
and that a `save` should come before the next step."""

ENDS = ("hello", "save", "goodbye", "close")
"""The requests of which every run has the same."""

U_REQUESTS: dict[str, Schema] = {kind: REQUESTS[kind] for kind in ENDS} | {
    "forward": {
        "step": int, "frame": bytes, "ids": bytes, "up_budget": int, "down_budget": int, "up_mbps": float,
        "down_mbps": float,
    },
    "backward": {"step": int, "frame": bytes, "up_budget": int, "down_budget": int},
    "pass_on": {"step": int, "batch": int, "frame": bytes, "smashed": bytes},
}  # fmt: skip
"""The requests of a U-shaped network's run: no label in them. A step is `forward`, which is answered with the second
cut's activations, and `backward`; of an evaluation the server passes batches on, and the client grades them."""

U_ANSWERS: dict[str, Schema] = {kind: ANSWERS[kind] for kind in ENDS} | {
    "forward": {"frame": bytes, "distortion": float, "rank": int, "broken": int, "compute_s": float},
    "backward": {
        "frame": bytes, "distortion": float, "rank": int, "broken": int, "compute_s": float, "wants_save": bool,
    },
    "pass_on": {"frame": bytes, "smashed": bytes},
}  # fmt: skip
"""Their answers; fields as in `ANSWERS`, `distortion` and `rank` of the answer's own frame."""

PREDICTION_REQUESTS: dict[str, Schema] = {
    "open": {
        "protocol": int, "config": str, "step": int, "sample_shape": list, "is_image": bool, "num_train": int,
        "num_classes": int,
    },
    "predict": {"batch": int, "frame": bytes, "num_real": int},
}  # fmt: skip
"""The requests of a conversation about a finished run: `open`, then `predict` after `predict`."""

PREDICTION_ANSWERS: dict[str, Schema] = {"open": {}, "predict": {"classes": bytes, "frame": bytes}}
"""Their answers; `classes` is little-endian int32, empty of a U-shaped network, whose client finds them by `frame`."""


def int32_bytes(values: Any) -> bytes:
    """Returns whole numbers as little-endian int32."""
    return np.asarray(values, "<i4").tobytes()


def int32_array(data: bytes, count: int, top: int, what: str) -> np.ndarray:
    """Returns `count` whole numbers in [0, top) from a request; raises an `EnvelopeError` for anything else."""
    if len(data) != 4 * count:
        raise EnvelopeError(f"{what} have {len(data)} bytes; expected {4 * count}")
    values = np.frombuffer(data, "<i4").astype(np.int32)
    if count and not (values.min() >= 0 and values.max() < top):
        raise EnvelopeError(f"{what} are from {values.min()} to {values.max()}; allowed: 0 to {top - 1}")
    return values
