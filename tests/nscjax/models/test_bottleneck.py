import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import models
from nscjax.check import InputError
from tests.nscjax.models.networks import quick_jit, spec

ARCHITECTURE = {"name": "resnet8", "width": 8, "cut": "stage2", "num_classes": 10, "bottleneck": 3}
SPEC = spec(4, 16, 16, 3)


@pytest.fixture(scope="module")
def halves():
    return quick_jit(lambda key: models.init(key=key, x_spec=SPEC, **ARCHITECTURE))(jax.random.key(0))


def test_what_crosses_is_small_and_in_0_1(halves):
    client, server = halves
    model = models.build(**ARCHITECTURE)
    x = jnp.asarray(np.random.default_rng(0).normal(size=SPEC.shape), jnp.float32)
    smashed, state = quick_jit(lambda: model.client_apply(*client, x, True))()
    assert smashed.shape == (4, 4, 4, 3)
    assert 0 < smashed.min() < smashed.max() < 1
    assert "encoder" in state
    logits, _ = quick_jit(lambda: model.server_apply(*server, smashed, True))()
    assert logits.shape == (4, 10)


def test_encoder_and_decoder_belong_to_a_half_each(halves):
    client, server = halves
    assert set(client[0]) == {"stem", "stage1", "stage2", "encoder"}
    assert set(server[0]) == {"decoder", "stage3", "head"}
    # Two by two pixels of 16 channels to 3 and back, each with a bias.
    assert client[0]["encoder"]["Conv_0"]["kernel"].shape == (2, 2, 16, 3)
    assert server[0]["decoder"]["ConvTranspose_0"]["kernel"].shape == (2, 2, 3, 16)


def test_without_a_bottleneck_nothing_changes():
    plain = {key: value for key, value in ARCHITECTURE.items() if key != "bottleneck"}
    bare = jax.eval_shape(lambda key: models.init(key=key, x_spec=SPEC, **plain), jax.random.key(0))
    none = jax.eval_shape(lambda key: models.init(key=key, x_spec=SPEC, bottleneck=None, **plain), jax.random.key(0))
    assert jax.tree.structure(bare) == jax.tree.structure(none)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck": 0}, "bottleneck is 0; allowed: a whole number >= 1"),
        ({"cut": "pool"}, "bottleneck is 3; allowed: None for a cut that is not made of images"),
        ({"cut": None}, "bottleneck is 3; allowed: None"),
        ({"name": "mlp", "cut": "hidden1"}, "bottleneck is 3; allowed: None"),
    ],
)
def test_what_cannot_have_a_bottleneck_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        models.build(**ARCHITECTURE | changes)
