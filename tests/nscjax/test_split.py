import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, cut, layout, measure, split, wire
from nscjax.compress import base, rank
from tests.nscjax import networks
from tests.nscjax.tensors import PLENTY, Counted, spec

LEARNING_RATE = 0.3
BATCH_SIZE = 6
BUDGETS = [(PLENTY, PLENTY), (180, 180), (PLENTY, 180), (180, PLENTY), (0, PLENTY), (PLENTY, 0), (PLENTY, PLENTY)]
"""Of the uplink and the downlink, step by step; the fifth and the sixth step are skipped, in part or in whole."""

ORDINARY = 4
"""How many steps come before those that are skipped."""


@jax.jit
def descend(params, grads):
    return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)


def assert_same(tree, other, to_the_bit=True):
    """Equal to the last bit on a CPU, and to rounding on other machines, whose compilers fuse as they please."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    if jax.default_backend() == "cpu" and to_the_bit:
        jax.tree.map(np.testing.assert_array_equal, tree, other)
    else:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), tree, other)


SETUPS = {
    "convolutional, nsc_sl both ways": (
        networks.convolutional,
        (6, 6, 2),
        (),
        lambda: compress.Duplex(
            up=compress.nsc_sl(max_rank=4, factor_bits=8),
            down=compress.nsc_sl(max_rank=4, factor_bits=4),
        ),
    ),
    "perceptron with running states, per sample up, across steps down": (
        networks.counting,
        (10,),
        networks.FRESH,
        lambda: compress.Duplex(
            up=compress.delta(compress.nsc_sl(max_rank=3), num_samples=BATCH_SIZE * 2),
            down=compress.error_feedback(compress.nsc_sl(max_rank=3), decay=0.9),
        ),
    ),
    "convolutional, nsc_rd both ways, across steps up": (
        networks.convolutional,
        (6, 6, 2),
        (),
        lambda: compress.Duplex(
            up=compress.error_feedback(compress.nsc_rd(max_rank=4), decay=0.5), down=compress.nsc_rd(max_rank=4)
        ),
    ),
    "convolutional, gradient on the activations' support": (
        networks.convolutional,
        (6, 6, 2),
        (),
        lambda: compress.Duplex(up=compress.METHODS["rand_top_k"](), down=compress.METHODS["top_k"]()),
    ),
    "perceptron with running states and a penalty": (
        networks.counting,
        (10,),
        networks.FRESH,
        lambda: compress.Duplex(
            up=compress.METHODS["fedlite"](subvector=2, most_bits=4, weight=0.1),
            down=compress.METHODS["power_quant"](),
        ),
    ),
    "convolutional, nsc_rd both ways with a rate penalty": (
        networks.convolutional,
        (6, 6, 2),
        (),
        lambda: compress.Duplex(
            up=compress.nsc_rd(max_rank=4, weight=0.01, energy=0.9), down=compress.nsc_rd(max_rank=4, energy=0.9)
        ),
    ),
}
PENALISED = {"perceptron with running states and a penalty", "convolutional, nsc_rd both ways with a rate penalty"}
"""What the cut layer refuses: a penalty is the client's own affair."""


class Setup:
    """A network, a duplex and batches; both parties as they are at the start."""

    def __init__(self, name):
        network, self.input_shape, self.fresh, duplex = SETUPS[name]
        self.model, self.client_params, self.server_params = network()
        self.duplex = duplex()
        smashed, _ = jax.eval_shape(
            lambda: self.model.client(self.client_params, self.fresh, self.batch(0)[0], is_training=False)
        )
        self.smashed_spec = spec(smashed)
        self.key = jax.random.key(5)

    def batch(self, step):
        """Two batches by turns: what was seen comes back."""
        return networks.batch(self.input_shape, step % 2, BATCH_SIZE)

    def parties(self):
        halves = [(params, self.fresh) for params in (self.client_params, self.server_params)]
        return split.init_parties(self.duplex, self.key, self.smashed_spec, *halves)

    def sides(self, step):
        keys = jax.random.split(jax.random.key(1000 + step))
        ids = jnp.arange(BATCH_SIZE, dtype=jnp.int32) + BATCH_SIZE * (step % 2)
        return [compress.SideInfo(key, jnp.int32(b), ids) for key, b in zip(keys, BUDGETS[step], strict=True)]


@functools.cache
def setup(name):
    return Setup(name)


@functools.cache
def trained_fused(name):
    """Returns, for every step, what the fused step computed and both parties after it."""
    s = setup(name)
    fused = jax.jit(functools.partial(split.fused_step, s.model, s.duplex, networks.loss_fn))
    client, server = s.parties()
    history = []
    for i in range(len(BUDGETS)):
        step, client, server = fused(client, server, s.batch(i), *s.sides(i))
        if not step.up.is_skipped:
            server = server._replace(params=descend(server.params, step.server_grads))
            if not step.down.is_skipped:
                client = client._replace(params=descend(client.params, step.client_grads))
        history.append((step, client, server))
    return history


@functools.cache
def trained_by_messages(name):
    """The same by two parties that see nothing of each other but frames; returns the lengths of these as well."""
    s = setup(name)
    forward = jax.jit(functools.partial(split.client_forward, s.model, s.duplex))
    serve = jax.jit(functools.partial(split.server_step, s.model, s.duplex, networks.loss_fn))
    backward = jax.jit(functools.partial(split.client_backward, s.duplex))
    client, server = s.parties()
    likes = {}
    history, frames = [], []

    def carried(direction, payload):
        frames.append(wire.encode(payload))
        return wire.decode(frames[-1], like=likes.setdefault(direction, payload))

    for i in range(len(BUDGETS)):
        inputs, targets = s.batch(i)
        side_up, side_down = s.sides(i)
        payload, pending, client = forward(client, inputs, side_up)
        payload = carried("up", payload)
        step, server = serve(server, payload, targets, side_up, side_down)
        if not measure.is_skipped(payload):
            server = server._replace(params=descend(server.params, step.grads))
        answer = carried("down", step.payload)
        grads, _, client = backward(client, pending, answer, side_down)
        if not measure.is_skipped(answer):
            client = client._replace(params=descend(client.params, grads))
        history.append(((step.loss, step.metrics, grads, step.grads), client, server))
    lengths = [len(frame) for frame in frames]
    return history, list(zip(lengths[::2], lengths[1::2], strict=True))


@functools.cache
def trained_by_one_loss(name):
    """The same by plain `jax.grad` of one loss with the cut in it, which has no notion of a skipped step."""
    s = setup(name)
    layer = cut.cut(s.duplex)

    @jax.jit
    def grads_of(params, states, state, inputs, targets, side_up, side_down):
        def loss(params, down):
            smashed, client_state = s.model.client(params[0], states[0], inputs, is_training=True)
            smashed_hat, up = layer.apply(smashed, state._replace(down=down), side_up, side_down)
            logits, server_state = s.model.server(params[1], states[1], smashed_hat, is_training=True)
            loss, metrics = networks.loss_fn(logits, targets)
            return loss, (metrics, (client_state, server_state), up)

        (loss, aux), (grads, down) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, state.down)
        return loss, aux, grads, down

    params, states, state = (s.client_params, s.server_params), (s.fresh, s.fresh), layer.init(s.key, s.smashed_spec)
    steps = []
    for i in range(ORDINARY):
        loss, (metrics, states, up), grads, down = grads_of(params, states, state, *s.batch(i), *s.sides(i))
        params, state = descend(params, grads), cut.next_state(up, down)
        steps.append((loss, metrics, *grads))
    return steps, params, states, state


def computed(step):
    return step.loss, step.metrics, step.client_grads, step.server_grads


@pytest.mark.parametrize("name", SETUPS)
def test_two_parties_compute_what_the_fused_step_computes(name):
    history, _ = trained_by_messages(name)
    for (fused, *parties), (messages, *other_parties) in zip(trained_fused(name), history, strict=True):
        # The gradient of a penalty is fused into the client's backward pass or is not.
        to_the_bit = name not in PENALISED
        assert_same(computed(fused), messages, to_the_bit)
        assert_same(parties, other_parties, to_the_bit)


@pytest.mark.parametrize("name", sorted(SETUPS.keys() - PENALISED))
def test_one_loss_with_the_cut_in_it_computes_what_the_fused_step_computes(name):
    history = trained_fused(name)[:ORDINARY]
    steps, params, states, state = trained_by_one_loss(name)
    assert_same([computed(step) for step, *_ in history], steps)
    _, client, server = history[-1]
    assert_same((client.params, server.params), params)
    assert_same((client.state, server.state), states)
    assert_same((client.up, server.up), tuple(state.up))
    assert_same((server.down, client.down), (state.down.enc, state.down.dec))


@pytest.mark.parametrize("name", SETUPS)
def test_what_a_step_reports_is_what_crossed(name):
    steps = [step for step, *_ in trained_fused(name)]
    _, frames = trained_by_messages(name)
    assert [(step.up.num_bytes, step.down.num_bytes) for step in steps] == frames
    for step, lengths, budgets in zip(steps, frames, BUDGETS, strict=True):
        for sent, length, budget_bytes in zip((step.up, step.down), lengths, budgets, strict=True):
            assert sent.is_skipped == (sent.rank == 0)
            assert length <= budget_bytes or sent.is_skipped
            assert sent.is_skipped == (budgets[0] == 0 or budget_bytes == 0)
            assert 0 < sent.distortion < 1 or sent.is_skipped


@pytest.mark.parametrize("name", SETUPS)
def test_training_gets_somewhere(name):
    losses = [float(step.loss) for step, *_ in trained_fused(name)]
    # Two batches by turns: the last time that each is seen against the first.
    assert losses[-1] + losses[-2] < losses[0] + losses[1]


def test_the_client_differentiates_at_its_own_activations_with_the_gradient_as_received():
    model, client_params, _ = networks.convolutional()
    identity = compress.identity()
    zeros = identity._replace(decompress=lambda payload, state, side: (jnp.zeros_like(payload.values), state))
    doubling = identity._replace(decompress=lambda payload, state, side: (2 * payload.values, state))
    duplex = compress.Duplex(up=zeros, down=doubling)
    inputs, _ = networks.batch((6, 6, 2))
    side = compress.SideInfo(jax.random.key(0), jnp.int32(0))
    smashed, vjp = jax.vjp(lambda params: model.client_apply(params, inputs), client_params)
    _, pending, client = split.client_forward(model, duplex, split.Party(client_params, (), (), ()), inputs, side)
    np.testing.assert_array_equal(pending.smashed, smashed)
    payload = compress.base.Dense(values=jnp.sin(smashed))
    grads, grad_hat, _ = split.client_backward(duplex, client, pending, payload, side)
    np.testing.assert_array_equal(grad_hat, 2 * jnp.sin(smashed))
    np.testing.assert_allclose(grads["kernel"], vjp(2 * jnp.sin(smashed))[0]["kernel"], rtol=1e-5)


@pytest.mark.parametrize("network", ["convolutional", "perceptron"])
def test_identity_is_plain_differentiation_of_the_uncut_network(network):
    model, client_params, server_params = getattr(networks, network)()
    duplex = compress.Duplex(up=compress.identity(), down=compress.identity())
    batch = networks.batch((6, 6, 2) if network == "convolutional" else (10,))
    side = compress.SideInfo(jax.random.key(0), jnp.int32(0))

    @jax.jit
    def uncut(params):
        logits = model.server_apply(params[1], model.client_apply(params[0], batch[0]))
        return networks.loss_fn(logits, batch[1])

    (loss, metrics), grads = jax.value_and_grad(uncut, has_aux=True)((client_params, server_params))
    parties = split.Party(client_params, (), (), ()), split.Party(server_params, (), (), ())
    fused = jax.jit(functools.partial(split.fused_step, model, duplex, networks.loss_fn))
    step, client, server = fused(*parties, batch, side, side)
    assert_same((step.loss, step.metrics), (loss, metrics))
    assert_same((step.client_grads, step.server_grads), grads)
    assert_same((client, server), parties)
    assert (step.up.distortion, step.down.distortion) == (0, 0)
    assert step.up.rank is None


# A penalty


def test_a_penalty_adds_its_gradient_to_the_clients_alone():
    model, client_params, server_params = networks.perceptron()
    batch = networks.batch((10,))
    side = compress.SideInfo(jax.random.key(0), jnp.int32(0))
    parties = split.Party(client_params, (), (), ()), split.Party(server_params, (), (), ())

    def penalty(x, payload, state):
        return 0.1 * jnp.sum(x**2) + jnp.sum(x * payload.values) + len(state)

    def step_with(penalty):
        duplex = compress.Duplex(up=compress.identity(), down=compress.identity(), penalty=penalty)
        return jax.jit(functools.partial(split.fused_step, model, duplex, networks.loss_fn))(
            *parties, batch, side, side
        )[0]

    def penalty_of(params):
        x = model.client_apply(params, batch[0])
        return penalty(x, base.Dense(values=jax.lax.stop_gradient(x)), ())

    with_penalty, without = step_with(penalty), step_with(None)
    assert with_penalty.loss == without.loss
    assert_same(with_penalty.server_grads, without.server_grads)
    expected = without.client_grads["in"] + jax.grad(penalty_of)(client_params)["in"]
    np.testing.assert_allclose(with_penalty.client_grads["in"], expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected - without.client_grads["in"]).max()) > 0.1


# What is shared, skipped and compiled


class Counting:
    """The perceptron with running states under a duplex whose states all remember."""

    def __init__(self):
        self.model, *params = networks.counting()
        low_rank = compress.low_rank(rank.by_energy(1.0), max_rank=3, factor_bits=8)
        remembering = compress.error_feedback(compress.delta(low_rank, BATCH_SIZE))
        self.duplex = compress.Duplex(up=remembering, down=remembering)
        struct = jax.ShapeDtypeStruct((BATCH_SIZE, 16), jnp.float32)
        halves = [(half, networks.FRESH) for half in params]
        self.parties = split.init_parties(self.duplex, jax.random.key(0), struct, *halves)

        @Counted
        def fused(client, server, batch, side_up, side_down):
            return split.fused_step(
                self.model, self.duplex, networks.loss_fn, client, server, batch, side_up, side_down
            )

        self.counted, self.fused = fused, jax.jit(fused)

    def step(self, i, parties, up_bytes=PLENTY, down_bytes=PLENTY):
        ids = jnp.arange(BATCH_SIZE, dtype=jnp.int32)
        sides = [compress.SideInfo(jax.random.key(i), jnp.int32(b), ids) for b in (up_bytes, down_bytes)]
        return self.fused(*parties, networks.batch((10,), i), *sides)


@pytest.fixture(scope="module")
def counting():
    return Counting()


@pytest.fixture(scope="module")
def warm(counting):
    """Both parties after a whole step."""
    return counting.step(0, counting.parties)[1:]


def test_a_whole_step_moves_every_state(counting, warm):
    (client, server), (old_client, old_server) = warm, counting.parties
    assert (client.state["count"], server.state["count"]) == (1, 1)
    for new, old in ((client.up, old_client.up), (client.down, old_client.down), (server.up, old_server.up)):
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old)))
    assert_same((client.params, server.params), (old_client.params, old_server.params))


def test_an_uplink_without_budget_is_skipped_and_the_server_stays_as_it_was(counting, warm):
    old_client, old_server = warm
    step, client, server = counting.step(1, warm, up_bytes=0)
    assert (step.up.rank, step.down.rank) == (0, 0)
    assert step.up.is_skipped
    assert step.down.is_skipped
    assert_same(server, old_server)
    assert_same((client.params, client.state, client.down), (old_client.params, old_client.state, old_client.down))


def test_what_an_unaffordable_uplink_costs_is_its_header(counting, warm):
    step, _, _ = counting.step(1, warm, up_bytes=0)
    x = jnp.zeros((BATCH_SIZE, 16))
    enc, _ = jax.eval_shape(lambda: counting.duplex.up.init(jax.random.key(0), spec(x)))
    side = compress.SideInfo(jax.random.key(0), 0, jnp.arange(BATCH_SIZE))
    payload, _ = jax.eval_shape(counting.duplex.up.compress, x, enc, side)
    assert step.up.num_bytes == step.down.num_bytes == layout.frame_bytes(payload)
    assert measure.rank(payload).shape == ()


def test_after_a_skipped_uplink_training_goes_on(counting, warm):
    _, *parties = counting.step(1, warm, up_bytes=0)
    step, client, server = counting.step(2, parties)
    assert not step.up.is_skipped
    assert (client.state["count"], server.state["count"]) == (2, 2)
    assert_same(client.up.enc.cache, server.up.cache)


def test_a_downlink_without_budget_is_skipped_while_the_server_learns(counting, warm):
    old_client, _ = warm
    step, client, server = counting.step(1, warm, down_bytes=0)
    assert not step.up.is_skipped
    assert step.up.rank == 3
    assert step.down.is_skipped
    assert step.down.rank == 0
    assert server.state["count"] == 2
    assert float(jnp.abs(step.server_grads["out"]).max()) > 0
    assert_same((client.state, client.down), (old_client.state, old_client.down))
    assert_same(client.down.cache, server.down.enc.cache)


def test_what_a_skipped_downlink_owed_is_in_the_residual(counting, warm):
    _, _, server = counting.step(1, warm, down_bytes=0)
    whole, _, served = counting.step(1, warm)
    assert whole.down.rank == 3
    assert measure.distortion(server.down.residual, served.down.residual) > 0.5


def test_no_budget_compiles_anew(counting, warm):
    for i, budgets in enumerate([(PLENTY, PLENTY), (0, PLENTY), (PLENTY, 0), (120, 130)]):
        counting.step(i, warm, *budgets)
    assert counting.counted.num_traces == 1


def test_a_step_moves_nothing_between_host_and_device(counting, warm):
    ids = jnp.arange(BATCH_SIZE, dtype=jnp.int32)
    side = compress.SideInfo(jax.random.key(3), jnp.int32(PLENTY), ids)
    batch = networks.batch((10,), 3)
    counting.fused(*warm, batch, side, side)
    with jax.transfer_guard("disallow"):
        step, *_ = counting.fused(*warm, batch, side, side)
    assert np.isfinite(step.loss)


def test_the_uplinks_payload_reaches_the_downlink_on_both_sides():
    """As top-k does, whose gradient crosses at the places that the activations had."""
    model, client_params, server_params = networks.perceptron()

    def share(payload, side):
        return side._replace(support=payload.values > 0)

    def compress_supported(x, state, side):
        return compress.base.Dense(values=jnp.where(side.support, x, 0.0)), state

    def decompress_supported(payload, state, side):
        return jnp.where(side.support, 2 * payload.values, 0.0), state

    identity = compress.identity()
    down = identity._replace(compress=compress_supported, decompress=decompress_supported)
    duplex = compress.Duplex(up=identity, down=down, share=share)
    parties = split.Party(client_params, (), (), ()), split.Party(server_params, (), (), ())
    side = compress.SideInfo(jax.random.key(0), jnp.int32(0))
    batch = networks.batch((10,))
    smashed = model.client_apply(client_params, batch[0])
    payload, pending, client = split.client_forward(model, duplex, parties[0], batch[0], side)
    step, _ = split.server_step(model, duplex, networks.loss_fn, parties[1], payload, batch[1], side, side)
    _, grad_hat, _ = split.client_backward(duplex, client, pending, step.payload, side)
    np.testing.assert_array_equal(grad_hat, jnp.where(smashed > 0, 2 * step.smashed_grad, 0.0))


def test_clients_map():
    """Many clients on one device: the fused step under vmap computes what each alone computes."""
    model, client_params, server_params = networks.perceptron()
    duplex = compress.Duplex(up=compress.identity(), down=compress.nsc_sl(max_rank=3))
    struct = jax.ShapeDtypeStruct((BATCH_SIZE, 16), jnp.float32)
    parties = split.init_parties(duplex, jax.random.key(0), struct, (client_params, ()), (server_params, ()))
    step = functools.partial(split.fused_step, model, duplex, networks.loss_fn)
    sides = [compress.SideInfo(jax.random.key(i), jnp.int32(b)) for i, b in enumerate([PLENTY, 0])]
    batches = [networks.batch((10,), i) for i in range(2)]
    stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
    both = jax.jit(jax.vmap(step, in_axes=(None, None, 0, 0, 0)))(
        *parties, stack(*batches), stack(*sides), stack(*sides)
    )
    one = jax.jit(step)
    for i in range(2):
        alone, *_ = one(*parties, batches[i], sides[i], sides[i])
        here = jax.tree.map(lambda leaf, i=i: leaf[i], both[0])
        assert (here.down.rank, here.down.num_bytes) == (alone.down.rank, alone.down.num_bytes)
        np.testing.assert_allclose(here.loss, alone.loss, rtol=1e-5)
        np.testing.assert_allclose(here.client_grads["in"], alone.client_grads["in"], atol=0.01)


def test_select_takes_one_of_two_trees():
    first, second = {"a": jnp.ones(2), "b": jnp.int32(1)}, {"a": jnp.zeros(2), "b": jnp.int32(2)}
    assert_same(split.select(jnp.asarray(True), first, second), first)
    assert_same(split.select(jnp.asarray(False), first, second), second)
    assert split.select(jnp.asarray(False), first, first)["a"] is first["a"]


def test_parties_own_only_their_end_of_every_state():
    s = setup("perceptron with running states, per sample up, across steps down")
    client, server = s.parties()
    assert client.up.enc is not None
    assert server.up.enc == ()
    assert not hasattr(client.down, "residual")
    assert server.down.residual.shape == s.smashed_spec.shape
