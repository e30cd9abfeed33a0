"""From the config to the compressors of both directions: method, view by calibration, rank in reach of the budget."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from nscjax import check, compress, measure
from nscjax.compress import Compressor
from nscjax.compress import view as views
from nscjax.layout import MAX_BYTES
from train.config import CompressConfig, DirectionConfig

GRADIENTS = {"down": "up", "second_up": "second_down"}
"""The directions in which gradients travel, each with that of its activations."""

FOLLOWED = {"nsc_rd": frozenset({"max_rank", "max_features", "mean_bits", "places"})}
"""Keys of a method that a gradient has of its activations, where both are of it: it crosses in their subspace."""


class Direction(NamedTuple):
    """One direction of the cut, ready to use.

    Attributes:
        compressor: with its feedback.
        cap_bytes: the largest frame that the config allows, on top of what the link allows.
        settings: what was passed to the method's factory, with the view that was chosen.
    """

    compressor: Compressor
    cap_bytes: int
    settings: dict[str, Any]


def parameters(name: str, config: DirectionConfig) -> frozenset[str]:
    """Returns the names of the arguments that the method of the direction `name` takes.

    Raises:
        InputError: there is no such method.
    """
    factory = compress.METHODS[check.one_of(f"compress.{name}.method", config.method, compress.METHODS)]
    return frozenset(inspect.signature(factory).parameters)


def used_keys(name: str, config: DirectionConfig) -> frozenset[str]:
    """Returns the names of the direction's config keys that have an effect."""
    used = parameters(name, config) | {"method", "feedback"}
    used |= {"ratio"} if config.method != "identity" else set()
    used -= {"weight"} if name in GRADIENTS else set()  # they have no loss of their sender's own
    return used | ({"feedback_decay"} if config.feedback == "across_steps" else set())


def followed_keys(name: str, config: CompressConfig) -> frozenset[str]:
    """Returns the names of the keys that the direction `name` has of its activations instead of its own."""
    if name not in GRADIENTS:
        return frozenset()
    own, there = getattr(config, name), getattr(config, GRADIENTS[name])
    # What changes by sample has subspaces of its own (`nscjax.compress.delta`).
    is_followed = own.method == there.method and "per_sample" not in (own.feedback, there.feedback)
    return FOLLOWED.get(own.method, frozenset()) if is_followed else frozenset()


def direction_of(name: str, config: CompressConfig) -> DirectionConfig:
    """Returns the direction `name` as it is used: without a penalty, and as its activations, where it is a gradient."""
    own = getattr(config, name)
    if name not in GRADIENTS:
        return own
    there = getattr(config, GRADIENTS[name])
    return dataclasses.replace(own, weight=None, **{key: getattr(there, key) for key in followed_keys(name, config)})


def cap_bytes(config: DirectionConfig, spec: jax.ShapeDtypeStruct) -> int:
    """Returns the largest frame for a cut tensor: floor(raw fp32 bytes / ratio), or raw and a header."""
    if config.ratio is None:
        return min(compress.identity().min_bytes(jax.ShapeDtypeStruct(spec.shape, "float32")), MAX_BYTES)
    return min(math.floor(measure.raw_bytes(spec.shape) / config.ratio), MAX_BYTES)


def require_view(name: str, config: DirectionConfig, known: Iterable[str] = views.KNOWN) -> None:
    """Raises an `InputError` unless the view of the direction `name` is one of `known`, or found by a rule."""
    check.one_of(f"compress.{name}.view", config.view, (*known, "auto", "calibrate"))


def choose_view(name: str, config: DirectionConfig, example: Any, budget_bytes: int) -> str:
    """Returns the view to use in the direction `name`: the config's, or the one with the least distortion on `example`.

    A `jax.ShapeDtypeStruct` of a cut tensor will do for `example` where nothing is calibrated.

    Raises:
        InputError: a cut tensor of this shape has no such view.
    """
    if "view" not in parameters(name, config):
        return config.view
    require_view(name, config, views.names(example.shape))
    if config.view != "calibrate":
        return views.resolve(config.view, example.shape)

    def build(view: str) -> Compressor:
        return _method(config, view, jax.ShapeDtypeStruct(example.shape, example.dtype), 1, budget_bytes)[0]

    return compress.calibrate(example, build, budget_bytes)


def build(
    name: str, config: DirectionConfig, view: str, spec: jax.ShapeDtypeStruct, num_samples: int, largest_budget: int
) -> Direction:
    """Returns the direction `name`, a section of `compress`, for cut tensors of `spec`.

    Args:
        name: of the direction.
        config: of it.
        view: as `choose_view` chose it.
        spec: of a cut tensor.
        num_samples: of the training set, for per-sample feedback.
        largest_budget: the largest budget that the link can give, in bytes.

    Raises:
        InputError: unknown method or view, or a budget below the least frame that carries anything.
    """
    cap = cap_bytes(config, spec)
    # AQ-SGD keeps what it has sent of every sample's activations; gradients it sends as they are.
    kept = 0 if name in GRADIENTS and config.method == "aq_sgd" else num_samples
    compressor, settings = _method(config, view, spec, kept, cap)
    least = compressor.min_bytes(spec)
    budget = min(cap, largest_budget)
    if budget < least and config.method != "identity":
        raise check.error(
            f"compress.{name}: budget of a frame for a cut of {tuple(spec.shape)}", f"{budget} bytes",
            f"at least {least} bytes", _remedy(name, cap, least, measure.raw_bytes(spec.shape)),
        )  # fmt: skip
    if compressor.penalty is not None and config.feedback == "per_sample" and name not in GRADIENTS:
        remedy = f"Set compress.{name}.weight to 0 to train without the penalty."
        allowed = f"'none' or 'across_steps' with {config.method} and a weight above 0"
        raise check.error(f"compress.{name}.feedback", "per_sample", allowed, remedy)
    wrapped = compress.with_feedback(compressor, config.feedback, decay=config.feedback_decay, num_samples=num_samples)
    return Direction(wrapped, cap, settings)


def _remedy(name: str, cap: int, least: int, raw_bytes: int) -> str:
    """Returns what to do about a direction's budget below the least frame of `least` bytes."""
    if cap >= least:
        return "Raise link.deadline_s or the link's rate, or lower link.latency_ms."
    if raw_bytes < least:
        return f"Leave compress.{name}.ratio out, or set compress.{name}.method to 'identity'."
    return f"Lower compress.{name}.ratio to {raw_bytes // least} or less."


@functools.cache  # the same compressor for the same settings: both directions are calibrated with one compilation
def _method(
    config: DirectionConfig, view: str, spec: jax.ShapeDtypeStruct, num_samples: int, budget_bytes: int
) -> tuple[Compressor, dict[str, Any]]:
    """Returns the method's compressor and its settings; a rank that the budget cannot reach is not computed."""
    factory = compress.METHODS[config.method]
    settings = {
        name: getattr(config, name)
        for name in sorted(inspect.signature(factory).parameters)
        if getattr(config, name, None) is not None
    }
    if "num_samples" in inspect.signature(factory).parameters:
        settings["num_samples"] = num_samples
    if "view" in settings:
        settings["view"] = view
    if {"max_rank", "view"} <= settings.keys():  # a matrix's factorisation: all components are computed, then cut
        reachable = compress.reachable_rank(factory(**settings), spec, budget_bytes)
        settings["max_rank"] = min(settings["max_rank"], reachable)
    return factory(**settings), settings
