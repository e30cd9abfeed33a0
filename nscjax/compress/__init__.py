"""Compressors of cut tensors.

`METHODS` maps every method's config name to its factory (keyword arguments with defaults, returns a `Compressor`); all
of them pass one contract test. `error_feedback`, `delta` and `ef21` wrap any of them; `calibrate` picks a view by
measurement. `baselines` holds other people's methods.
"""

from collections.abc import Callable

from nscjax.compress import baselines
from nscjax.compress.base import Compressor, Duplex, SideInfo, identity
from nscjax.compress.calibrate import calibrate, reachable_rank
from nscjax.compress.feedback import FEEDBACKS, delta, ef21, error_feedback, with_feedback
from nscjax.compress.low_rank import LowRank, low_rank
from nscjax.compress.nsc_rd import nsc_rd
from nscjax.compress.nsc_sl import nsc_sl

METHODS: dict[str, Callable[..., Compressor]] = {
    "identity": identity,
    "nsc_sl": nsc_sl,
    "nsc_rd": nsc_rd,
    **{name: getattr(baselines, name) for name in baselines.__all__},
}
"""Every method by its config name."""

__all__ = [
    "FEEDBACKS",
    "METHODS",
    "Compressor",
    "Duplex",
    "LowRank",
    "SideInfo",
    "calibrate",
    "delta",
    "ef21",
    "error_feedback",
    "identity",
    "low_rank",
    "nsc_rd",
    "nsc_sl",
    "reachable_rank",
    "with_feedback",
]
