import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from nscjax import compress, wire
from nscjax.check import InputError
from nscjax.compress import view as views
from tests.train.runs import count_compilations
from train import compression
from train.config import CompressConfig, DirectionConfig

pytestmark = pytest.mark.usefixtures("quick")

SPEC = jax.ShapeDtypeStruct((8, 4, 4, 16), jnp.float32)
RAW = 4 * 8 * 4 * 4 * 16
X = jax.random.normal(jax.random.key(0), SPEC.shape)


def build(config, view="BHW,C", largest_budget=1 << 30, spec=SPEC):
    return compression.build("up", config, view, spec, 100, largest_budget)


@pytest.fixture
def direction():
    return DirectionConfig(max_rank=4, view="BHW,C")


def test_parameters_are_those_of_the_factory():
    expected = {"max_rank", "energy", "factor_bits", "iterations", "view"}
    assert compression.parameters("up", DirectionConfig(method="nsc_sl")) == expected
    assert compression.parameters("up", DirectionConfig(method="identity")) == frozenset()


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(
        InputError, match=r"compress\.up\.method is 'nsc_ls'; allowed: .*'nsc_sl'.*Did you mean 'nsc_sl'\?"
    ):
        compression.parameters("up", DirectionConfig(method="nsc_ls"))


@pytest.mark.parametrize("ratio", [1.0, 3.0, 41.9])
def test_the_cap_is_the_raw_size_over_the_ratio_rounded_down(ratio):
    assert compression.cap_bytes(DirectionConfig(ratio=ratio), SPEC) == int(RAW // ratio)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_a_ratio_the_cap_is_the_raw_frame(dtype):
    spec = jax.ShapeDtypeStruct(SPEC.shape, dtype)
    payload, _ = compress.identity().compress(X, (), compress.SideInfo(jax.random.key(0), 0))
    assert compression.cap_bytes(DirectionConfig(), spec) == len(wire.encode(payload))
    assert RAW < len(wire.encode(payload)) < RAW + 100


def test_a_named_view_is_taken_as_it_is():
    with count_compilations() as compilations:
        assert compression.choose_view("up", DirectionConfig(view="BC,HW"), X, 1000) == "BC,HW"
        assert compression.choose_view("up", DirectionConfig(view="auto"), X, 1000) == views.resolve("auto", X.shape)
        assert compression.choose_view("up", DirectionConfig(method="identity"), X, 1000) == "auto"
    assert not compilations


def test_calibration_finds_the_view_in_which_the_tensor_is_cheapest():
    # Rank one as [B, T * D], rank four as [B * T, D].
    samples, rest = jax.random.normal(jax.random.key(1), (8, 1, 1)), jax.random.normal(jax.random.key(2), (4, 16))
    assert compression.choose_view("up", DirectionConfig(max_rank=1, view="calibrate"), samples * rest, 400) == "B,TD"


def test_what_is_built_takes_the_settings_of_the_config(direction):
    built = build(direction)
    assert built.cap_bytes == compression.cap_bytes(direction, SPEC)
    expected = {"energy": 1.0, "factor_bits": 8, "iterations": 1, "max_rank": 4, "view": "BHW,C"}
    assert built.settings == expected


def test_components_that_the_cap_cannot_reach_are_not_computed():
    built = build(DirectionConfig(max_rank=16, ratio=24.0))
    top = built.settings["max_rank"]
    assert top < 16
    enc, _ = built.compressor.init(jax.random.key(0), SPEC)
    side = compress.SideInfo(jax.random.key(1), built.cap_bytes)
    payload, _ = jax.jit(built.compressor.compress)(X, enc, side)
    num_bytes, per_component = len(wire.encode(payload)), 4 + 8 * 4 * 4 // 2 + 16 // 2
    assert int(payload.rank) == top == payload.scale.shape[0]
    assert num_bytes <= built.cap_bytes < num_bytes + per_component


@pytest.mark.parametrize(("feedback", "state"), [("across_steps", "ErrorFeedbackState"), ("per_sample", "DeltaState")])
def test_feedback_is_wrapped_around(feedback, state):
    built = build(DirectionConfig(max_rank=2, feedback=feedback, feedback_decay=0.5))
    enc, _ = jax.eval_shape(built.compressor.init, jax.random.key(0), SPEC)
    assert type(enc).__name__ == state
    if feedback == "per_sample":
        assert enc.cache.shape == (100, *SPEC.shape[1:])


def test_a_ratio_beyond_the_least_frame_is_refused_with_the_least_that_works(direction):
    least = build(direction).compressor.min_bytes(SPEC)
    given = r"compress\.up: budget of a frame for a cut of \(8, 4, 4, 16\) is '16 bytes'"
    with pytest.raises(InputError, match=rf"{given}; allowed: at least {least} bytes\."):
        build(dataclasses.replace(direction, ratio=500.0))


@pytest.mark.parametrize("width", range(8, 24, 3))
@pytest.mark.parametrize("factor_bits", [4, 16])
def test_the_ratio_that_a_refusal_proposes_works(width, factor_bits):
    spec = jax.ShapeDtypeStruct((8, 4, 4, width), jnp.float32)
    config = DirectionConfig(max_rank=4, factor_bits=factor_bits, ratio=500.0)
    with pytest.raises(InputError) as caught:
        build(config, spec=spec)
    proposed = float(re.search(r"Lower compress\.up\.ratio to (\d+) or less", str(caught.value)).group(1))
    assert build(dataclasses.replace(config, ratio=proposed), spec=spec).settings["max_rank"] == 1


def test_no_ratio_is_proposed_where_none_works():
    # A tensor smaller than the least frame that carries anything.
    spec = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    with pytest.raises(InputError, match=r"allowed: at least \d+ bytes\.") as caught:
        build(DirectionConfig(ratio=2.0), view="B,D", spec=spec)
    assert "ratio to 0" not in str(caught.value)


def test_a_link_below_the_least_frame_is_refused(direction):
    least = build(direction).compressor.min_bytes(SPEC)
    with pytest.raises(InputError, match=rf"budget .* is '{least - 1} bytes'.* Raise link\.deadline_s"):
        build(direction, largest_budget=least - 1)
    assert build(direction, largest_budget=least).cap_bytes == compression.cap_bytes(direction, SPEC)


def test_identity_has_no_budget_to_miss():
    built = build(DirectionConfig(method="identity", ratio=100.0), view="calibrate", largest_budget=1)
    assert built.settings == {}
    assert built.cap_bytes == RAW // 100


@pytest.mark.parametrize(("config", "message"), [
    (DirectionConfig(view="HW,BC"), r"compress\.down\.view is 'HW,BC'; allowed: 'BHW,C', .*'auto', 'calibrate'"),
    (DirectionConfig(view="B,D"), r"compress\.down\.view is 'B,D'; allowed: .*'B,HWC'"),
])  # fmt: skip
def test_a_view_that_the_cut_does_not_have_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        compression.choose_view("down", config, X, 1000)


def test_keys_without_effect_are_not_among_those_used():
    nsc_sl = compression.used_keys("up", DirectionConfig())
    assert {"method", "feedback", "ratio", "view", "max_rank"} <= nsc_sl
    assert "feedback_decay" not in nsc_sl
    assert "feedback_decay" in compression.used_keys("up", DirectionConfig(feedback="across_steps"))
    assert compression.used_keys("up", DirectionConfig(method="identity")) == {"method", "feedback"}
    assert "weight" in compression.used_keys("up", DirectionConfig(method="nsc_rd"))
    assert "weight" in compression.used_keys("second_down", DirectionConfig(method="nsc_rd"))
    assert "weight" not in compression.used_keys("down", DirectionConfig(method="nsc_rd"))


def test_a_gradient_of_nsc_rd_has_the_frame_of_its_activations():
    up = DirectionConfig(method="nsc_rd", max_features=5, places="slow", weight=0.1, ratio=8.0)
    down = DirectionConfig(method="nsc_rd", max_rank=1, mean_bits=0, weight=0.5, energy=0.9, ratio=4.0)
    config = CompressConfig(up=up, down=down, second_down=down, second_up=dataclasses.replace(up, method="nsc_sl"))
    assert compression.direction_of("up", config) == up
    assert compression.direction_of("down", config) == dataclasses.replace(up, weight=None, energy=0.9, ratio=4.0)
    assert compression.direction_of("second_up", config) == dataclasses.replace(config.second_up, weight=None)
    assert compression.followed_keys("down", config) == {"max_rank", "max_features", "mean_bits", "places"}
    assert compression.followed_keys("up", config) == compression.followed_keys("second_up", config) == frozenset()
    by_sample = dataclasses.replace(config, up=dataclasses.replace(up, weight=None, feedback="per_sample"))
    assert compression.followed_keys("down", by_sample) == frozenset()


@pytest.mark.parametrize("method", sorted(compress.METHODS))
def test_every_method_is_built_from_the_config(method):
    built = build(DirectionConfig(method=method, ratio=None if method in ("identity", "fp16") else 4.0))
    enc, dec = built.compressor.init(jax.random.key(0), SPEC)
    side = compress.SideInfo(jax.random.key(1), built.cap_bytes, jnp.arange(8, dtype=jnp.int32))
    payload, _ = built.compressor.compress(X, enc, side)
    assert built.compressor.decompress(payload, dec, side)[0].shape == X.shape
    assert len(wire.encode(payload)) <= built.cap_bytes


def test_a_peers_parameters_are_keys_of_the_config():
    built = build(DirectionConfig(method="rand_top_k", alpha=0.3, k=5))
    assert built.settings == {"alpha": 0.3, "k": 5}
    assert build(DirectionConfig(method="aq_sgd", bits=2)).settings == {"bits": 2, "num_samples": 100}


def test_every_parameter_of_every_method_can_be_configured():
    keys = {field.name for field in dataclasses.fields(DirectionConfig)} | {"num_samples", "most_bits"}
    for method in compress.METHODS:
        assert compression.parameters("up", DirectionConfig(method=method)) <= keys


def test_a_fixed_rate_that_the_budget_does_not_afford_is_refused():
    with pytest.raises(
        InputError, match=r"budget of a frame .* at least \d+ bytes\. Lower compress\.up\.ratio to 7 or"
    ):
        build(DirectionConfig(method="uniform", bits=4, ratio=8.0))
