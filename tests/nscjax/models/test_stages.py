import jax
import jax.numpy as jnp
import numpy as np

from nscjax.models import stages
from nscjax.models.layers import ConvNormRelu, Head
from nscjax.models.resnet import Pool

NETWORK = (("first", ConvNormRelu(4, "batch", jnp.float32)), ("pool", Pool()), ("head", Head(3)))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 1)), jnp.float32)


def test_each_stage_is_initialised_from_its_own_key():
    key = jax.random.key(5)
    params, state = stages.init(NETWORK, key, X)
    head = Head(3).init(jax.random.fold_in(key, 2), jnp.zeros((2, 4)), False)["params"]
    np.testing.assert_array_equal(params["head"]["Dense_0"]["kernel"], head["Dense_0"]["kernel"])
    assert set(params) == {"first", "head"}, "a stage without parameters is left out"
    assert set(state) == {"first"}, "a stage without state is left out"


def test_a_run_of_stages_can_be_applied_in_parts():
    params, state = stages.init(NETWORK, jax.random.key(0), X)
    logits, new_state = stages.apply(NETWORK, params, state, X, True)
    pooled, first_state = stages.apply(NETWORK[:2], params, state, X, True)
    assert pooled.shape == (2, 4)
    assert jax.tree.structure(first_state) == jax.tree.structure(new_state)
    np.testing.assert_array_equal(stages.apply(NETWORK[2:], params, {}, pooled, True)[0], logits)


def test_no_stage_returns_its_input():
    y, state = stages.apply((), {}, {}, X, True)
    assert y is X
    assert state == {}


def test_state_given_is_left_as_it_was():
    params, state = stages.init(NETWORK, jax.random.key(0), X)
    before = jax.tree.map(np.array, state)
    stages.apply(NETWORK, params, state, X, True)
    jax.tree.map(np.testing.assert_array_equal, state, before)
