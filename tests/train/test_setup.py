import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, link, split
from nscjax.check import InputError
from tests.train import runs
from tests.train.runs import count_compilations, same_leaves
from train import setup
from train.config import CompressConfig, Config, DataConfig, DirectionConfig, LinkConfig, ModelConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("quick")

OWN = Config(train=TrainConfig(batch_size=8))
NETWORK = Config(model=ModelConfig(name="mlp", width=4, cut="hidden1"), train=TrainConfig(batch_size=8))
VIEWS = {"up": "B,D", "down": "B,D"}


def set_up(config=OWN, dataset=None, model=None, views=None):
    dataset = dataset or runs.own_dataset()
    return setup.set_up(config, dataset, *(model or runs.own_model()), 10, views)


def test_the_network_fits_the_data():
    dataset = runs.made_dataset()
    architecture = setup.architecture_of(NETWORK, dataset)
    expected = {"name": "mlp", "width": 4, "cut": "hidden1", "norm": "batch", "bottleneck": None, "second_cut": None,
                "num_classes": 3, "dtype": "float32"}  # fmt: skip
    assert architecture == expected
    model, client, server = setup.network(NETWORK, dataset)
    smashed, _ = model.client(*client, jnp.zeros((8, 8, 8, 1)), False)
    logits, _ = model.server(*server, smashed, False)
    assert (smashed.shape, logits.shape) == ((8, 4), (8, 3))


def test_first_values_follow_from_the_seed():
    dataset = runs.made_dataset()
    values = [setup.network(dataclasses.replace(NETWORK, seed=seed), dataset)[1:] for seed in (0, 0, 1)]
    assert same_leaves(values[0], values[1])
    assert not same_leaves(values[0], values[2])


def test_first_values_do_not_depend_on_the_cut():
    deeper = dataclasses.replace(NETWORK, model=dataclasses.replace(NETWORK.model, cut="hidden2"))
    (_, one, other), (_, deeper_one, deeper_other) = (setup.network(c, runs.made_dataset()) for c in (NETWORK, deeper))
    assert same_leaves(one[0] | other[0], deeper_one[0] | deeper_other[0])


def test_the_cut_is_that_of_the_first_batch():
    built, settings = set_up()
    (cut,) = built.cuts
    spec = cut.spec
    assert (spec.shape, spec.dtype) == ((8, 6), jnp.float32)
    assert cut.caps == (compress.identity().min_bytes(spec),) * 2
    names = {"energy", "factor_bits", "iterations", "max_rank", "view"}
    assert settings["up"].keys() == settings["down"].keys() == names


def test_each_direction_has_its_own_settings():
    config = dataclasses.replace(
        OWN, compress=CompressConfig(DirectionConfig(max_rank=2, ratio=2.0), DirectionConfig(method="identity"))
    )
    built, settings = set_up(config)
    assert built.cuts[0].caps[0] == 8 * 6 * 4 // 2
    assert built.cuts[0].caps[1] > 8 * 6 * 4
    assert (settings["up"]["max_rank"], settings["down"]) == (2, {})


def test_gradients_of_nsc_rd_are_set_up_as_their_activations():
    up, down = (DirectionConfig(method="nsc_rd", max_features=most, mean_bits=bits) for most, bits in ((5, 1), (1, 3)))
    _, settings = set_up(dataclasses.replace(OWN, compress=CompressConfig(up, down)))
    assert settings["up"] == settings["down"] == {"energy": 1.0, "max_features": 5, "max_rank": 64, "mean_bits": 1,
                                                  "places": "learned"}  # fmt: skip


def test_views_are_measured_where_the_tensor_is():
    # Activations of rank one as [B, T * D], gradients of rank one as [B * T, D].
    random = np.random.default_rng(0)
    rest, mix, feature = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((5, 16), (5, 3), (16,)))
    model = split.SplitModel(
        client_apply=lambda params, x: (x @ params)[:, None, None] * rest,
        server_apply=lambda params, smashed: jnp.einsum("btd,tk,d->bk", smashed, params, feature),
    )
    once = DirectionConfig(max_rank=1, view="calibrate")
    config = dataclasses.replace(OWN, compress=CompressConfig(once, once))
    halves = (jnp.ones(4), ()), (mix, ())
    built, settings = set_up(config, model=(model, *halves))
    assert built.cuts[0].spec.shape == (8, 5, 16)
    assert (settings["up"]["view"], settings["down"]["view"]) == ("B,TD", "BT,D")


def test_views_that_were_chosen_before_are_kept():
    dataset, config = runs.made_dataset(), dataclasses.replace(NETWORK, model=ModelConfig("cnn", 4, "conv1"))
    views = {"up": "BH,WC", "down": "BC,HW"}
    with count_compilations() as compilations:
        _, settings = set_up(config, dataset, setup.network(config, dataset), views)
    assert {way: settings[way]["view"] for way in views} == views
    assert compilations["_distortion_when_warm"] == 0


@pytest.mark.parametrize(("given", "up", "down"), [
    ({}, None, None),
    ({"up_mbps": 2.0}, 2.0, None),
    ({"up_mbps": 2.0, "down_mbps": 8.0}, 2.0, 8.0),
    ({"down_trace": "lte_like:3"}, None, "lte_like:3"),
    ({"trace": "lte_like:3"}, "lte_like:3", "lte_like:3"),
    ({"up_trace": "lte_like:1", "down_trace": "lte_like:2"}, "lte_like:1", "lte_like:2"),
])  # fmt: skip
def test_the_link_is_that_of_the_config(given, up, down):
    def trace(what):
        if what is None:
            return link.unlimited()
        return link.load_trace(what) if isinstance(what, str) else link.constant(what)

    config = dataclasses.replace(OWN, link=LinkConfig(**given, latency_ms=30, client_step_s=0.5, server_step_s=0.25))
    built, _ = set_up(config)
    assert same_leaves(built.link.up, trace(up))
    assert same_leaves(built.link.down, trace(down))
    rest = (built.link.up_latency_s, built.link.down_latency_s, built.link.client_step_s, built.link.server_step_s)
    assert rest == (0.03, 0.03, 0.5, 0.25)


def test_a_constant_link_is_known_before_the_first_transfer():
    assert setup.initial_mbps(Config(link=LinkConfig(up_mbps=3.0, initial_mbps=0.5))) == (3.0, 0.5)
    assert setup.initial_mbps(Config(link=LinkConfig(trace="lte_like:1"))) == (1.0, 1.0)


def test_a_deadline_that_a_constant_link_cannot_meet_is_refused():
    config = dataclasses.replace(OWN, link=LinkConfig(down_mbps=1.0, deadline_s=1e-4))
    pattern = r"compress\.down: budget of a frame for a cut of \(8, 6\) is '12 bytes'; .* Raise link\.deadline_s"
    with pytest.raises(InputError, match=pattern):
        set_up(config)


def test_a_deadline_that_a_trace_cannot_meet_at_its_best_is_refused():
    def link_of(deadline_s, **more):
        return dataclasses.replace(OWN, link=LinkConfig(deadline_s=deadline_s, **more))

    with pytest.raises(InputError, match=r"compress\.up: budget of a frame .* Raise link\.deadline_s"):
        set_up(link_of(1e-6, trace="lte_like:1"))
    with pytest.raises(InputError, match=r"is '0 bytes'; .* lower link\.latency_ms"):
        set_up(link_of(0.05, latency_ms=100.0))
    # Not always enough, but sometimes: such messages are skipped and counted.
    assert set_up(link_of(1e-4, trace="lte_like:1"))


@pytest.mark.parametrize("late_share", [0.05, 0.5])
def test_the_share_of_late_messages_is_that_of_the_config(late_share):
    made = set_up(dataclasses.replace(OWN, link=LinkConfig(late_share=late_share)))[0].estimator
    expected = link.quantile(miss=late_share)
    states = [estimator.init(1.0) for estimator in (made, expected)]
    for seconds in (1.0, 2.0, 4.0):  # slower and slower
        states = [estimator.update(state, 10**6, seconds) for estimator, state in zip((made, expected), states)]
    assert made.mbit_per_s(states[0]) == expected.mbit_per_s(states[1])


def test_images_are_normalised_and_augmented_and_other_inputs_are_not():
    config = dataclasses.replace(NETWORK, data=DataConfig(augment=True))
    dataset = runs.made_dataset()
    built, _ = set_up(config, dataset, setup.network(config, dataset), VIEWS)
    assert same_leaves(built.inputs[:2], (dataset.mean, dataset.std))
    assert (built.inputs.is_augmented, built.inputs.can_flip) == (True, True)
    digits, _ = set_up(config, dataset._replace(name="digits"), setup.network(config, dataset), VIEWS)
    assert (digits.inputs.is_augmented, digits.inputs.can_flip) == (True, False)
    own, _ = set_up(dataclasses.replace(OWN, data=DataConfig(augment=True)))
    assert (own.inputs.mean, own.inputs.std, own.inputs.is_augmented) == (None, None, False)


def test_arithmetic_is_of_the_type_that_was_asked_for():
    config = dataclasses.replace(NETWORK, train=dataclasses.replace(NETWORK.train, dtype="bfloat16"))
    dataset = runs.made_dataset()
    network = setup.network(config, dataset)
    built, _ = set_up(config, dataset, network, VIEWS)
    spec = built.cuts[0].spec
    assert (built.inputs.dtype, spec.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(network[1:])} == {jnp.dtype("float32")}
