"""What every method promises, bare and wrapped: one test class, run over `compress.METHODS`."""

import dataclasses
import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, measure, wire
from tests.nscjax.tensors import PLENTY, Counted, distortion, normal, rank_one, side, spec

NUM_SAMPLES = 12
WRAPPERS = {
    "bare": lambda compressor: compressor,
    "error_feedback": lambda compressor: compress.error_feedback(compressor, decay=0.9),
    "delta": lambda compressor: compress.delta(compressor, NUM_SAMPLES),
}
TENSORS = {
    "BD odd": ((5, 7), jnp.float32),
    "BD batch of 1": ((1, 6), jnp.bfloat16),
    "BTD": ((4, 5, 6), jnp.bfloat16),
    "BHWC odd": ((5, 3, 3, 7), jnp.float32),
}
# The first message of a wrapped compressor is the bare one's, so that no tensor need be tried in both ways.
CASES = [
    ("bare", "BD odd"),
    ("bare", "BD batch of 1"),
    ("bare", "BHWC odd"),
    ("error_feedback", "BTD"),
    ("delta", "BHWC odd"),
]
UNBOUNDED = {"identity"}
"""Methods that send everything, whatever the budget."""

COARSE = {"aq_sgd", "uniform"}
"""Methods whose least frame may lose more than no frame does: 1 bit between the least and the largest entry."""

CODED = {"nsc_rd"}
"""Methods with an entropy coder: how long their least frame is depends on the values."""

NOISY = {"c3_sl", "splitfc"}
"""Methods that lose something however large the budget is, or draw at random what they send."""

VALUES = {
    "normal": normal,
    "zero": jnp.zeros,
    "constant": lambda shape: jnp.full(shape, 3.0),
    "rank one": rank_one,
    "huge": lambda shape: 1e20 * normal(shape),
    "tiny": lambda shape: 1e-20 * normal(shape),
}


class Case:
    """A compressor with one tensor, its functions jitted once for all the tests."""

    def __init__(self, method, wrapper, tensor):
        self.is_unbounded, self.is_noisy, self.is_coarse = (method in names for names in (UNBOUNDED, NOISY, COARSE))
        self.is_coded = method in CODED
        self.compressor = WRAPPERS[wrapper](compress.METHODS[method]())
        self.shape, self.dtype = TENSORS[tensor]
        self.spec = jax.ShapeDtypeStruct(self.shape, self.dtype)
        self.enc, self.dec = jax.jit(self.compressor.init, static_argnums=1)(jax.random.key(1), self.spec)
        self.counted = Counted(self.compressor.compress)
        self.compress = jax.jit(self.counted)
        self.decompress = jax.jit(self.compressor.decompress)

    def side(self, budget_bytes, seed=0):
        return side(budget_bytes, seed, jnp.arange(self.shape[0], dtype=jnp.int32))

    def tensor(self, values="normal"):
        return VALUES[values](self.shape).astype(self.dtype)

    def sent(self, x, budget_bytes=PLENTY):
        """Returns (payload, x_hat) of a fresh state."""
        payload, _ = self.compress(x, self.enc, self.side(budget_bytes))
        return payload, self.decompress(payload, self.dec, self.side(budget_bytes))[0]

    def budgets(self):
        least = self.compressor.min_bytes(self.spec)
        full = max(least, 4 * self.spec.size) + 64
        return [0, least - 1, least, (least + full) // 2, full, PLENTY]


make = functools.cache(Case)


@pytest.fixture(params=[(method, *case) for method in compress.METHODS for case in CASES], ids="-".join)
def case(request):
    return make(*request.param)


def assert_trees_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def layout_of(tree):
    return jax.tree.map(spec, tree)


@pytest.mark.parametrize("values", VALUES)
def test_every_tensor_crosses(case, values):
    """Shape and dtype are kept, nothing becomes non-finite, and with room enough nothing large is lost."""
    x = case.tensor(values)
    payload, x_hat = case.sent(x)
    assert (x_hat.shape, x_hat.dtype) == (x.shape, x.dtype)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(payload))
    assert np.isfinite(x_hat).all()
    assert distortion(x, x_hat) < (3.0 if case.is_noisy else 0.15)


@pytest.mark.parametrize("tensor", ["BD odd", "BHWC odd"])
@pytest.mark.parametrize("method", ["nsc_sl", "nsc_rd"])
def test_numbers_near_the_largest_cross(method, tensor):
    """One over them is subnormal, their squares and sums are infinite."""
    case = make(method, "bare", tensor)
    for largest in (5e37, 3e38):
        x = largest * jnp.tanh(case.tensor())
        payload, x_hat = case.sent(x)
        frame = wire.encode(payload)
        assert distortion(x, x_hat) < 0.15
        jax.tree.map(np.testing.assert_array_equal, wire.decode(frame), jax.device_get(payload))


@pytest.mark.parametrize("values", VALUES)
def test_states_stay_usable(case, values):
    """Whatever was sent, states keep their structure, and a normal tensor crosses afterwards as it should."""
    enc, dec = case.enc, case.dec
    for step, x in enumerate([case.tensor(values), *[case.tensor()] * 3]):
        payload, enc = case.compress(x, enc, case.side(PLENTY, step))
        x_hat, dec = case.decompress(payload, dec, case.side(PLENTY, step))
    assert layout_of(enc) == layout_of(case.enc)
    assert layout_of(dec) == layout_of(case.dec)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((enc, dec)))
    # What was lost of 1e20 is still there, in a residual or a cache; and some methods add noise to what they wrap.
    if values != "huge" and not case.is_noisy:
        assert distortion(x, x_hat) < 0.15


def test_frames_have_their_length_and_keep_to_the_budget(case):
    for values in ("normal", "rank one", "zero"):
        for budget_bytes in case.budgets():
            payload, _ = case.sent(case.tensor(values), budget_bytes)
            frame = wire.encode(payload)
            assert len(frame) == case.compressor.num_bytes(payload)
            assert measure.is_skipped(payload) == (budget_bytes < case.budgets()[2] and not case.is_unbounded)
            assert len(frame) <= budget_bytes or case.is_unbounded or measure.is_skipped(payload)


def test_the_least_budget_affords_the_least_frame(case):
    least = case.compressor.min_bytes(case.spec)
    payload, _ = case.sent(case.tensor(), least)
    assert case.compressor.num_bytes(payload) == least or (case.is_coded and case.compressor.num_bytes(payload) < least)
    if measure.rank(payload) is not None:
        assert measure.rank(payload) >= 1
        below, x_hat = case.sent(case.tensor(), least - 1)
        assert measure.rank(below) == 0
        np.testing.assert_array_equal(x_hat, 0)


def test_what_crosses_as_bytes_is_what_was_sent(case):
    for budget_bytes in case.budgets():
        payload, x_hat = case.sent(case.tensor(), budget_bytes)
        frame = wire.encode(payload)
        alone, agreed = wire.decode(frame), wire.decode(frame, like=payload)
        assert_trees_equal(alone, agreed)
        assert wire.encode(alone) == frame
        np.testing.assert_array_equal(case.decompress(alone, case.dec, case.side(budget_bytes))[0], x_hat)


def test_more_bytes_never_lose_more(case):
    if case.is_noisy:
        pytest.skip("what is lost is partly chance")
    x = case.tensor()
    lost = [distortion(x, case.sent(x, budget_bytes)[1]) for budget_bytes in case.budgets()]
    sent = lost[2:] if case.is_coarse else lost
    assert all(later <= earlier * 1.02 + 1e-4 for earlier, later in itertools.pairwise(sent))
    assert case.is_unbounded or lost[0] == 1


def test_no_budget_and_no_value_compiles_anew(case):
    for budget_bytes in case.budgets():
        for values in VALUES:
            case.compress(case.tensor(values), case.enc, case.side(budget_bytes))
    assert case.counted.num_traces == 1


def test_equal_messages_are_equal_bytes(case):
    frames = [wire.encode(case.sent(case.tensor(), 200)[0]) for _ in range(2)]
    assert frames[0] == frames[1]


@pytest.mark.parametrize("method", compress.METHODS)
def test_jit_changes_nothing(method):
    case = make(method, "bare", "BD odd")
    x, side = case.tensor(), case.side(150)
    eager, _ = case.compressor.compress(x, case.enc, side)
    jitted, x_hat = case.sent(x, 150)
    assert layout_of(eager) == layout_of(jitted)
    assert case.compressor.num_bytes(eager) == case.compressor.num_bytes(jitted)
    eager_hat, _ = case.compressor.decompress(eager, case.dec, side)
    assert abs(distortion(x, eager_hat) - distortion(x, x_hat)) < 1e-4
    np.testing.assert_allclose(eager_hat, x_hat, atol=0.05)


@pytest.mark.parametrize("method", compress.METHODS)
def test_clients_map(method):
    """Under vmap every client has its own tensor, state and budget."""
    case = make(method, "bare", "BD odd")
    xs = jnp.stack([case.tensor(), 2 * case.tensor()[::-1], jnp.zeros(case.shape)])
    budgets = [PLENTY, case.budgets()[3], 0]
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    sides = jax.tree.map(stack, *[case.side(budget_bytes) for budget_bytes in budgets])
    encs, decs = (jax.tree.map(stack, *[state] * 3) for state in (case.enc, case.dec))
    payloads, _ = jax.jit(jax.vmap(case.compressor.compress))(xs, encs, sides)
    x_hats, _ = jax.jit(jax.vmap(case.compressor.decompress))(payloads, decs, sides)
    for i, budget_bytes in enumerate(budgets):
        payload, x_hat = case.sent(xs[i], budget_bytes)
        mapped = jax.tree.map(lambda leaf, i=i: leaf[i], payloads)
        assert case.compressor.num_bytes(mapped) == case.compressor.num_bytes(payload)
        np.testing.assert_allclose(x_hats[i], x_hat, atol=0.05)


@pytest.mark.parametrize("name", compress.METHODS)
def test_factories_take_keywords_with_defaults(name):
    parameters = inspect.signature(compress.METHODS[name]).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    assert all(parameter.default is not parameter.empty for parameter in parameters)


@pytest.mark.parametrize("name", compress.METHODS)
def test_payloads_are_frozen(name):
    case = make(name, "bare", "BD odd")
    payload, _ = case.sent(case.tensor())
    assert dataclasses.is_dataclass(payload)
    with pytest.raises(dataclasses.FrozenInstanceError):
        payload.extra = 1
