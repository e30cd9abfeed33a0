import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import models
from nscjax.check import InputError

SPEC = jax.ShapeDtypeStruct((4, 16, 16, 1), jnp.float32)
# Small enough to run everything without jit, a multiple of the number of attention heads, not of 16.
SIZES = {"width": 8, "num_classes": 10}


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=SPEC.shape), SPEC.dtype)


@functools.cache
def init(name, cut, key=0, **options):
    return models.init(name, jax.random.key(key), SPEC, cut=cut, **SIZES, **options)


def init_whole(name, **options):
    return init(name, None, **options)[1]


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("name", models.MODELS)
def test_client_then_server_is_the_whole_network_at_every_cut(name, x):
    whole = models.build(name, cut=None, **SIZES)
    (no_params, no_state), (params, state) = init(name, None)
    assert no_params == no_state == {}
    logits, new_state = whole.server_apply(params, state, x, True)
    assert logits.shape == (4, 10)
    for cut in models.cut_names(name):
        model = models.build(name, cut=cut, **SIZES)
        assert model.stateful
        (client_params, client_state), (server_params, server_state) = init(name, cut)
        assert_equal(client_params | server_params, params)
        smashed, client_state = model.client_apply(client_params, client_state, x, True)
        cut_logits, server_state = model.server_apply(server_params, server_state, smashed, True)
        assert_equal(cut_logits, logits)
        assert_equal(client_state | server_state, new_state)


@pytest.mark.parametrize("name", models.MODELS)
def test_cut_decides_which_stages_are_the_clients(name):
    names = (*models.cut_names(name), "head")
    assert len(set(names)) == len(names)
    for i, cut in enumerate(names[:-1]):
        (client_params, _), (server_params, _) = init(name, cut)
        assert set(client_params) <= set(names[: i + 1])
        assert set(server_params) <= set(names[i + 1 :])


def test_without_a_cut_the_client_passes_its_input_on(x):
    smashed, state = models.build("mlp", cut=None, **SIZES).client_apply({}, {}, x, True)
    assert_equal(smashed, x)
    assert state == {}


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8"])
def test_running_statistics_change_in_training_only(name, x):
    model = models.build(name, cut=None, **SIZES)
    params, state = init_whole(name)
    _, trained = model.server_apply(params, state, x, True)
    assert jax.tree.structure(trained) == jax.tree.structure(state)
    jax.tree.map(lambda new, old: np.testing.assert_array_less(0, np.abs(new - old).max()), trained, state)
    _, evaluated = model.server_apply(params, trained, x, False)
    assert_equal(evaluated, trained)


@pytest.mark.parametrize("name", models.MODELS)
def test_group_normalisation_has_no_state(name, x):
    params, state = init_whole(name, norm="group")
    assert state == {}
    apply = functools.partial(
        models.build(name, cut=None, norm="group", **SIZES).server_apply, is_training=True
    )
    assert jax.eval_shape(apply, params, state, x)[1] == {}


@pytest.mark.parametrize(
    ("name", "norm"), [*((name, "batch") for name in models.MODELS), ("mlp", "group"), ("resnet8", "group")]
)
def test_gradient_reaches_every_parameter(name, norm, x):
    model = models.build(name, cut=None, norm=norm, **SIZES)
    params, state = init_whole(name, norm=norm)

    def loss(params):
        logits, _ = model.server_apply(params, state, x, True)
        return -jax.nn.log_softmax(logits)[:, 3].mean()

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 1e-6, path


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "vit"])
def test_bfloat16_is_for_the_computation_only(name, x):
    cut = models.cut_names(name)[1]
    client, server = init(name, cut, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((client, server)))
    half = models.build(name, cut=cut, dtype=jnp.bfloat16, **SIZES)
    smashed, client_state = half.client_apply(*client, x, True)
    # What the link returns is float32; what the server computes in must not depend on it.
    logits, server_state = half.server_apply(*server, smashed.astype(jnp.float32), True)
    assert smashed.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((client_state, server_state)))
    assert_equal(half.server_apply(*server, smashed, True)[0], logits)

    full = models.build(name, cut=None, **SIZES)
    full_logits, _ = full.server_apply(client[0] | server[0], client[1] | server[1], x, True)
    distortion = jnp.sum((logits - full_logits) ** 2) / jnp.sum(full_logits**2)
    assert 0 < distortion < 0.01


def test_parameters_follow_from_the_key():
    (params, _), (same, _), (other, _) = (
        models.init("mlp", jax.random.key(key), SPEC, cut=None, **SIZES)[1] for key in (1, 1, 2)
    )
    assert_equal(params, same)
    kernel, other = (tree["head"]["Dense_0"]["kernel"] for tree in (params, other))
    assert np.abs(kernel - other).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "resnet9"},
            "model is 'resnet9'; allowed: 'mlp', 'cnn', 'resnet8', 'resnet18', 'resnet34', 'vit'. "
            "Did you mean 'resnet8'?",
        ),
        (
            {"cut": "stage4"},
            "cut is 'stage4'; allowed: 'stem', 'stage1', 'stage2', 'stage3', 'pool'. Did you mean 'stage3'?",
        ),
        ({"cut": "head"}, "cut is 'head'; allowed: 'stem', 'stage1', 'stage2', 'stage3', 'pool'."),
        ({"norm": "layer"}, "norm is 'layer'; allowed: 'batch', 'group'."),
        ({"width": 0}, "width is 0; allowed: a number >= 1."),
        ({"num_classes": 0}, "num_classes is 0; allowed: a number >= 1."),
    ],
)
def test_errors_name_what_is_allowed(change, message):
    arguments = {"name": "resnet8", "cut": "stage1", **SIZES, **change}
    with pytest.raises(InputError) as caught:
        models.build(**arguments)
    assert str(caught.value) == message
    with pytest.raises(InputError) as caught:
        models.init(key=jax.random.key(0), x_spec=SPEC, **arguments)
    assert str(caught.value) == message


def test_cut_names_of_an_unknown_model():
    with pytest.raises(InputError, match="model is 'lstm'; allowed: 'mlp', 'cnn'"):
        models.cut_names("lstm")
