import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax.models import stages
from nscjax.models.layers import Head
from nscjax.models.mlp import Hidden
from nscjax.models.resnet import Pool
from tests.nscjax.models.networks import quick_jit

NETWORK = (("pool", Pool()), ("hidden", Hidden(4, "batch", jnp.float32)), ("head", Head(3)))
KEY = jax.random.key(5)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 2)), jnp.float32)


@pytest.fixture(scope="module")
def variables():
    return quick_jit(lambda key: stages.init(NETWORK, key, X))(KEY)


def test_each_stage_is_initialised_from_its_own_key(variables):
    params, _ = variables
    head = quick_jit(lambda key: Head(3).init(key, jnp.zeros((2, 4)), False))(jax.random.fold_in(KEY, 2))
    np.testing.assert_array_equal(params["head"]["Dense_0"]["kernel"], head["params"]["Dense_0"]["kernel"])


def test_stages_without_parameters_or_state_are_left_out(variables):
    params, state = variables
    assert set(params) == {"hidden", "head"}
    assert set(state) == {"hidden"}


def test_a_run_of_stages_can_be_applied_in_parts(variables):
    params, state = variables
    logits, new_state = stages.apply(NETWORK, params, state, X, True)
    hidden, hidden_state = stages.apply(NETWORK[:2], params, state, X, True)
    assert hidden.shape == (2, 4)
    jax.tree.map(np.testing.assert_array_equal, hidden_state, new_state)
    head_logits, head_state = stages.apply(NETWORK[2:], params, {}, hidden, True)
    np.testing.assert_array_equal(head_logits, logits)
    assert head_state == {}


def test_no_stage_returns_its_input():
    y, state = stages.apply((), {}, {}, X, True)
    assert y is X
    assert state == {}


def test_state_given_is_left_as_it_was(variables):
    params, state = variables
    before = jax.tree.map(np.array, state)
    _, new_state = stages.apply(NETWORK, params, state, X, True)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert np.abs(new_state["hidden"]["Norm_0"]["BatchNorm_0"]["mean"]).max() > 0
