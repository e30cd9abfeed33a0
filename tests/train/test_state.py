import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, link, split, wire
from tests.train.runs import own_dataset, own_model, own_setup, own_state, same_leaves
from train import optimise
from train import state as states
from train.config import TrainConfig
from train.step import programs, train_step

pytestmark = pytest.mark.usefixtures("quick")

DATA = own_dataset()
X, Y, IDS = jnp.asarray(DATA.x_train[:8]), jnp.asarray(DATA.y_train[:8]), jnp.arange(8, dtype=jnp.int32)
LOW_RANK = compress.nsc_sl(max_rank=3, energy=1.0, factor_bits=8, view="B,D")
TOO_LITTLE = LOW_RANK.min_bytes(jax.ShapeDtypeStruct((8, 6), jnp.float32)) - 1
TOO_LITTLE_DOWN = TOO_LITTLE - 13  # in the uplink's subspace, and of one bit, the least frame is that much shorter


def step_of(setup):
    """Returns the jitted step; the caps may change from call to call, as the budget of a link does."""

    @jax.jit
    def step(state, x, y, caps):
        return train_step(programs(setup._replace(cuts=(setup.cuts[0]._replace(caps=caps),))), state, x, y, IDS)

    return lambda state, x, y, caps=setup.cuts[0].caps: step(state, x, y, caps)


@pytest.fixture(scope="module")
def low_rank():
    """(setup, state before the first step, jitted step) with momentum and decay, both directions compressed."""
    train = TrainConfig(learning_rate=0.1, schedule="cosine", warmup=0.0, weight_decay=0.01)
    setup = own_setup(up=LOW_RANK, down=LOW_RANK, train=train)
    return setup, own_state(setup), step_of(setup)


def test_a_step_left_alone_is_one_of_the_whole_network():
    setup = own_setup()
    state, (model, (client, _), (server, _)) = own_state(setup), own_model()
    moved, metrics = step_of(setup)(state, X, Y)

    def loss_fn(params):
        return states.cross_entropy(model.server_apply(params[1], model.client_apply(params[0], X)), Y)

    (loss, accuracy), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))((client, server))
    directions, _ = setup.optimiser.update(grads, setup.optimiser.init((client, server)), (client, server))
    expected = optimise.apply((client, server), directions, jnp.float32(0.1))
    for found, wanted in zip(jax.tree.leaves((moved.client.params, moved.server.params)), jax.tree.leaves(expected)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-6)
    assert float(metrics.accuracy) == float(accuracy)
    assert (int(moved.step), bool(moved.is_sound), int(metrics.broken)) == (1, True, -1)
    payload, _ = compress.identity().compress(jnp.zeros((8, 6)), (), compress.SideInfo(jax.random.key(0), 0))
    assert int(metrics.up.num_bytes) == int(metrics.down.num_bytes) == len(wire.encode(payload))
    assert (int(metrics.up_budget_bytes), int(metrics.down_budget_bytes)) == setup.cuts[0].caps
    assert float(metrics.link_seconds) == 0


def test_the_learning_rate_follows_the_step(low_rank):
    setup, state, step = low_rank
    first, _ = step(state, X, Y)
    # Everything as before the first step but the count: the same direction at half the rate.
    halfway, _ = step(state._replace(step=jnp.int32(5)), X, Y)
    rates = [float(setup.learning_rate(number)) for number in (0, 5)]
    np.testing.assert_allclose(rates, [0.1, 0.05], rtol=1e-6)
    moves = [moved.server.params["b"] - state.server.params["b"] for moved in (first, halfway)]
    np.testing.assert_allclose(moves[1], 0.5 * moves[0], rtol=0.05)


def test_a_step_is_a_function_of_its_state(low_rank):
    _, state, step = low_rank
    assert same_leaves(step(state, X, Y), step(state, X, Y))


def test_keys_differ_by_purpose_and_seed(low_rank):
    setup, _, _ = low_rank
    other = setup._replace(key=jax.random.key(1))
    keys = [states.key_of(one.key, name) for one in (setup, other) for name in states.PURPOSES]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 2 * len(states.PURPOSES)


@pytest.mark.parametrize(("caps", "stays"), [
    ((TOO_LITTLE, 100_000), {"client", "server"}),
    ((100_000, TOO_LITTLE_DOWN), {"client"}),
    ((TOO_LITTLE, TOO_LITTLE_DOWN), {"client", "server"}),
])  # fmt: skip
def test_a_skipped_message_leaves_the_halves_as_they_were(low_rank, caps, stays):
    _, state, step = low_rank
    state, _ = step(state, X, Y)  # momentum is under way
    moved, metrics = step(state, X, Y, caps)
    for name in ("client", "server"):
        before, after = ((getattr(one, name), getattr(one, f"{name}_optimiser")) for one in (state, moved))
        assert same_leaves((before[0].params, before[1]), (after[0].params, after[1])) == (name in stays)
    assert int(moved.step) == int(state.step) + 1
    assert bool(metrics.up.is_skipped) == (caps[0] == TOO_LITTLE)
    assert bool(metrics.down.is_skipped)
    assert int(metrics.broken) == -1
    for message, cap in ((metrics.up, caps[0]), (metrics.down, caps[1])):
        if message.is_skipped:
            assert int(message.rank) == 0
            assert float(message.distortion) == 1
            assert int(message.num_bytes) <= cap


def test_budgets_are_the_smaller_of_link_and_config():
    slow = link.Link(up=link.constant(0.02), down=link.constant(0.004))
    setup = own_setup(up=LOW_RANK, down=LOW_RANK, caps=(120, 120), link=slow, deadline_s=0.1)
    state = own_state(setup, initial_mbps=(0.02, 0.004))
    moved, metrics = step_of(setup)(state, X, Y)
    assert (int(metrics.up_budget_bytes), int(metrics.down_budget_bytes)) == (120, 50)
    seconds = int(metrics.up.num_bytes) * 8e-6 / 0.02 + int(metrics.down.num_bytes) * 8e-6 / 0.004
    assert float(metrics.link_seconds) == pytest.approx(seconds, rel=1e-4)
    assert not same_leaves(moved.link, state.link)


def test_images_are_normalised_and_other_inputs_are_not():
    x = jnp.full((2, 4, 4, 2), 51, jnp.uint8)
    inputs = own_setup().inputs
    assert inputs.normalise(X) is X
    inputs = inputs._replace(mean=np.array([0.2, 0.4], np.float32), std=np.array([1.0, 0.5], np.float32))
    np.testing.assert_allclose(inputs.normalise(x)[0, 0, 0], [0.0, -0.4], atol=1e-6)
    assert inputs._replace(dtype=jnp.bfloat16).normalise(x).dtype == jnp.bfloat16


def test_training_images_are_moved_by_the_key_of_their_step():
    seen = split.SplitModel(
        client_apply=lambda params, x: x.reshape(len(x), -1) * params, server_apply=lambda params, x: x[:, :3] * params
    )
    halves = (jnp.ones(()), ()), (jnp.ones(()), ())
    mean, std = np.zeros(1, np.float32), np.ones(1, np.float32)
    x = jax.random.randint(jax.random.key(0), (8, 8, 8, 1), 0, 256).astype(jnp.uint8)
    losses = {}
    for is_augmented in (False, True):
        inputs = states.Inputs(mean, std, jnp.dtype("float32"), is_augmented, can_flip=True)
        setup = own_setup(model=seen, inputs=inputs, cut_shape=(8, 64))
        state = states.init(setup, *halves, (1.0, 1.0))
        step = step_of(setup)
        losses[is_augmented] = [float(step(state._replace(step=jnp.int32(n)), x, Y)[1].loss) for n in (0, 1, 0)]
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]
    assert losses[True][0] == losses[True][2]


def test_donating_the_state_leaves_the_callers_parameters():  # a state's leaves are all its own
    _, client, server = own_model()
    setup = own_setup()
    state = states.init(setup, client, server, (1.0, 1.0))
    jax.jit(lambda state: train_step(programs(setup), state, X, Y, IDS), donate_argnums=0)(state)
    assert same_leaves(client, own_model()[1])
    assert same_leaves(server, own_model()[2])


def broken(model=None, x=X, client=None, server=None, **changes):
    """Returns (state before, state after, metrics) of a step that goes wrong."""
    setup = own_setup(**({"model": model} if model else {}), **changes)
    state = own_state(setup)
    if client is not None:
        state = state._replace(client=state.client._replace(params=client))
    if server is not None:
        state = state._replace(server=state.server._replace(params=server))
    moved, metrics = step_of(setup)(state, x, Y)
    return state, moved, metrics


def _sqrt_of_zero(x):
    """Returns zero, whose gradient is not finite."""
    return jnp.sqrt(x * 0.0)


MODEL, (CLIENT, _), (SERVER, _) = own_model()
HUGE = TrainConfig(learning_rate=1e38, schedule="constant", warmup=0.0)
BROKEN = {
    "activations of the cut": {"x": X.at[3, 1].set(jnp.nan)},
    "loss": {"server": jax.tree.map(lambda leaf: leaf + jnp.inf, SERVER)},
    "gradient of the cut": {
        "model": MODEL._replace(server_apply=lambda params, x: x @ params["w"] + _sqrt_of_zero(x[:, :3]))
    },
    "client's gradients": {
        "model": MODEL._replace(client_apply=lambda params, x: x @ params["w"] + _sqrt_of_zero(params["b"]))
    },
    "server's gradients": {
        "model": MODEL._replace(server_apply=lambda params, x: x @ params["w"] + _sqrt_of_zero(params["b"]))
    },
    "client's updated half": {
        "train": HUGE,
        "client": jax.tree.map(lambda leaf: leaf * 0 + 1e-3, CLIENT),
        "x": X * 1e3,
    },
    "server's updated half": {
        "train": HUGE,
        "model": split.SplitModel(
            lambda params, x: x @ params["w"], lambda params, x: 1e3 * (x @ params["w"] + params["b"])
        ),
        "x": X * 0,
    },
}


@pytest.mark.parametrize("name", states.TENSORS)
def test_a_number_that_is_not_finite_is_named_and_the_state_stays(name):
    state, moved, metrics = broken(**BROKEN[name])
    assert states.TENSORS[int(metrics.broken)] == name
    assert not bool(moved.is_sound)
    assert same_leaves(moved._replace(is_sound=state.is_sound), state)


def test_running_state_counts_as_part_of_a_half():
    # Batch statistics can overflow while activations, loss and gradients are still finite.
    def client_apply(params, state, x, is_training):
        return x @ params["w"], {"var": state["var"] * 1e30} if is_training else state

    model = split.SplitModel(client_apply, lambda params, state, x, _: (x @ params["w"], state), stateful=True)
    setup = own_setup(model=model)
    client, server = (CLIENT, {"var": jnp.full((), 1e20)}), (SERVER, {})
    state = states.init(setup, client, server, (1.0, 1.0))
    moved, metrics = step_of(setup)(state, X, Y)
    assert states.TENSORS[int(metrics.broken)] == "client's updated half"
    assert float(moved.client.state["var"]) == pytest.approx(1e20)


def test_after_a_broken_step_the_state_stays_for_good(low_rank):
    _, state, step = low_rank
    state, _ = step(state, X, Y)
    after, metrics = step(state, X.at[0, 0].set(jnp.nan), Y)
    assert int(metrics.broken) == 0
    later, metrics = step(after, X, Y)
    assert int(metrics.broken) == -1
    assert same_leaves(later, after)
    assert same_leaves(later._replace(is_sound=state.is_sound), state)
    # Declared sound again, it goes on as if nothing had been.
    assert same_leaves(step(later._replace(is_sound=state.is_sound), X, Y), step(state, X, Y))
