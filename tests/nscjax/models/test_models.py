from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import models
from nscjax.check import InputError
from tests.nscjax.models.networks import apply_spec, init, init_spec, quick_jit, spec

SPEC = spec(4, 8, 8, 1)
SIZES = {"width": 8, "num_classes": 10}


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(0.5, 1, SPEC.shape), SPEC.dtype)


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("name", models.MODELS)
def test_client_then_server_is_the_whole_network_at_every_cut(name):
    # The same program, so the same result to the last bit.
    def program(cut):
        model = models.build(name, cut=cut, **SIZES)

        def run(params, state, x):
            smashed, client_state = model.client_apply(params, state, x, True)
            logits, server_state = model.server_apply(params, state, smashed, True)
            return logits, client_state | server_state

        return str(jax.make_jaxpr(run)(*whole_spec, SPEC))

    _, whole_spec = init_spec(name, SPEC, width=8)
    whole = program(None)
    for cut in models.cut_names(name):
        assert program(cut) == whole


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_first_layers_then_server_then_last_layers_are_the_whole_network_wherever_it_is_cut_twice(name):
    def program(cut, second_cut):
        model = models.build(name, cut=cut, second_cut=second_cut, **SIZES)

        def run(params, state, x):
            if second_cut is None:
                return model.server_apply(params, state, x, True)
            passed, state = model.client_apply(params, state, x, True)
            passed, state = model.server_apply(params, state, passed, True)
            return model.tail_apply(params, state, passed, True)

        return str(jax.make_jaxpr(run)(*whole_spec, SPEC))

    _, whole_spec = init_spec(name, SPEC, width=8)
    whole, names = program(None, None), models.cut_names(name)
    for place, second_cut in enumerate(names):
        assert program(None, second_cut) == whole
        for cut in names[:place]:
            assert program(cut, second_cut) == whole
            halves = init_spec(name, SPEC, cut=cut, second_cut=second_cut, width=8)
            assert tuple(one | other for one, other in zip(*halves)) == whole_spec
            assert set(halves[1][0]) <= set(names[names.index(cut) + 1 : place + 1])


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "vit"])
def test_each_half_has_the_parameters_of_its_own_stages(name):
    _, (whole_params, whole_state) = init_spec(name, SPEC, width=8)
    names = (*models.cut_names(name), "head")
    assert len(set(names)) == len(names)
    for i in (0, len(names) // 2, len(names) - 2):
        cut = names[i]
        model = models.build(name, cut=cut, **SIZES)
        (client_params, client_state), (server_params, server_state) = init_spec(name, SPEC, cut=cut, width=8)
        assert client_params | server_params == whole_params
        assert client_state | server_state == whole_state
        assert set(client_params) <= set(names[: i + 1])
        assert set(server_params) <= set(names[i + 1 :])
        # Each half runs on its own parameters alone, and keeps the structure of its state.
        smashed, state = apply_spec(model.client_apply, client_params, client_state, SPEC)
        assert state == client_state
        logits, state = apply_spec(model.server_apply, server_params, server_state, smashed)
        assert state == server_state
        assert (logits.shape, logits.dtype) == ((4, 10), jnp.float32)


def test_values_of_parameters_follow_from_the_key_and_not_from_the_cut():
    def parameters(key, cut):
        client, server = init("mlp", SPEC, cut=cut, key=key, width=8)
        return client[0] | server[0]

    params = parameters(1, None)
    assert_equal(parameters(1, "hidden2"), params)
    kernel, other = (tree["head"]["Dense_0"]["kernel"] for tree in (params, parameters(2, None)))
    assert np.abs(kernel - other).max() > 0.01


def test_without_a_cut_the_client_passes_its_input_on(x):
    model = models.build("mlp", cut=None, **SIZES)
    assert model.stateful
    smashed, state = model.client_apply({}, {}, x, True)
    assert_equal(smashed, x)
    assert state == {}
    client, _ = init_spec("mlp", SPEC, width=8)
    assert client == ({}, {})


@pytest.mark.parametrize(
    ("name", "norm"), [("mlp", "batch"), ("cnn", "batch"), ("resnet8", "batch"), ("resnet8", "group"), ("vit", "batch")]
)
def test_training_reaches_every_parameter_and_every_statistic(name, norm, x):
    model = models.build(name, cut=None, norm=norm, **SIZES)
    _, (params, state) = init(name, SPEC, norm=norm, width=8)

    def loss(params):
        logits, new_state = model.server_apply(params, state, x, True)
        return -jax.nn.log_softmax(logits)[:, 3].mean(), new_state

    grads, trained = quick_jit(jax.grad(loss, has_aux=True))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 1e-6, path
    has_state = norm == "batch" and name != "vit"
    assert bool(jax.tree.leaves(state)) == has_state
    for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(state), strict=True):
        assert np.abs(new - old).max() > 1e-3, path


def test_evaluation_leaves_the_statistics_as_they_are(x):
    model = models.build("mlp", cut="hidden2", **SIZES)
    (params, state), _ = init("mlp", SPEC, cut="hidden2", width=8)
    state = jax.tree.map(lambda leaf: leaf + 0.25, state)
    _, new_state = quick_jit(partial(model.client_apply, is_training=False))(params, state, x)
    assert_equal(new_state, state)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "vit"])
def test_bfloat16_is_for_the_computation_only(name):
    cut = models.cut_names(name)[1]
    client, server = init_spec(name, SPEC, cut=cut, width=8, dtype=jnp.bfloat16)
    assert (client, server) == init_spec(name, SPEC, cut=cut, width=8)
    assert {leaf.dtype for leaf in jax.tree.leaves((client, server))} == {jnp.dtype("float32")}
    model = models.build(name, cut=cut, dtype=jnp.bfloat16, **SIZES)
    smashed, client_state = apply_spec(model.client_apply, *client, SPEC)
    assert smashed.dtype == jnp.bfloat16
    assert client_state == client[1]

    # What a link returns may be float32; the server computes in bfloat16 all the same.
    received = spec(*smashed.shape)
    program = jax.make_jaxpr(partial(model.server_apply, is_training=False))(*server, received)
    multiplied = {
        variable.aval.dtype.name
        for equation in program.eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
        for variable in equation.invars
    }
    assert multiplied == {"bfloat16", "float32"}, "float32 in the head only"
    assert program.out_avals[0].dtype == jnp.float32


def test_bfloat16_logits_are_near_those_of_float32(x):
    _, (params, state) = init("cnn", SPEC, width=8)

    def logits(dtype):
        model = models.build("cnn", cut=None, dtype=dtype, **SIZES)
        return quick_jit(partial(model.server_apply, is_training=True))(params, state, x)[0]

    exact, near = logits(jnp.float32), logits(jnp.bfloat16)
    assert 0 < np.sum((exact - near) ** 2) / np.sum(exact**2) < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "resnet9"},
            "name is 'resnet9'; allowed: 'mlp', 'cnn', 'resnet8', 'resnet18', 'resnet34', 'vit'. "
            "Did you mean 'resnet8'?",
        ),
        (
            {"cut": "stage4"},
            "cut is 'stage4'; allowed: 'stem', 'stage1', 'stage2', 'stage3', 'pool'. Did you mean 'stage3'?",
        ),
        ({"cut": "head"}, "cut is 'head'; allowed: 'stem', 'stage1', 'stage2', 'stage3', 'pool'."),
        ({"norm": "layer"}, "norm is 'layer'; allowed: 'batch', 'group'."),
        ({"width": 0}, "width is 0; allowed: a whole number >= 1."),
        ({"num_classes": 0}, "num_classes is 0; allowed: a whole number >= 1."),
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
    with pytest.raises(InputError, match="name is 'lstm'; allowed: 'mlp', 'cnn'"):
        models.cut_names("lstm")
