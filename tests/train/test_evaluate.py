import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax import compress, split, wire
from tests.train.runs import NUM_TEST, own_dataset, own_model, own_setup, own_state, same_leaves
from train import evaluate
from train import state as states

pytestmark = pytest.mark.usefixtures("quick")

DATA = own_dataset()
X, Y = jnp.asarray(DATA.x_test), jnp.asarray(DATA.y_test)
COARSE = compress.nsc_sl(max_rank=1, factor_bits=4, view="B,D")
FIELDS = ["loss", "accuracy", "balanced_accuracy", "accuracy_uncompressed", "eval_up_bytes"]


def score(setup, state, batch_size, x=X, y=Y, num_classes=3, **more):
    parts = evaluate.make_parts(setup, batch_size, num_classes)
    return evaluate.evaluate(parts, state, x, y, batch_size, num_classes, **more)


@pytest.fixture(scope="module")
def whole():
    """(logits of the whole test set, the scores in batches of 8), nothing compressed."""
    model, (client, _), (server, _) = own_model()
    logits = model.server_apply(server, model.client_apply(client, X))
    setup = own_setup()
    return np.asarray(logits), score(setup, own_state(setup), 8)


def test_scores_are_those_of_the_whole_test_set(whole):
    logits, scores = whole
    assert list(scores) == FIELDS
    is_right = logits.argmax(axis=1) == np.asarray(Y)
    loss, _ = states.cross_entropy(jnp.asarray(logits), Y)
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(is_right.mean())
    assert 0 < scores["accuracy"] < 1
    by_class = [is_right[np.asarray(Y) == label].mean() for label in range(3)]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(by_class))


def test_left_alone_both_accuracies_are_one(whole):
    assert whole[1]["accuracy_uncompressed"] == whole[1]["accuracy"]


def test_the_last_batch_is_padded_and_the_padding_does_not_count(whole):
    assert NUM_TEST % 8
    one, many = (own_setup(cut_shape=(batch_size, 6)) for batch_size in (1, 32))
    one_by_one = score(one, own_state(one), 1)
    larger_than_the_set = score(many, own_state(many), 32)
    for name in FIELDS[:-1]:
        assert one_by_one[name] == pytest.approx(whole[1][name], rel=1e-5)
        assert larger_than_the_set[name] == pytest.approx(whole[1][name], rel=1e-5)


def test_a_class_without_test_samples_does_not_count(whole):
    kept = np.asarray(Y) != 2
    logits = whole[0][kept]
    setup = own_setup()
    scores = score(setup, own_state(setup), 8, X[kept], Y[kept])
    is_right = logits.argmax(axis=1) == np.asarray(Y)[kept]
    by_class = [is_right[np.asarray(Y)[kept] == label].mean() for label in range(2)]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(by_class))


def test_frames_are_counted_and_progress_is_told():
    setup = own_setup(up=COARSE)
    seen = []
    scores = score(setup, own_state(setup), 8, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    x = jax.random.normal(jax.random.key(0), (8, 6))
    payload, _ = COARSE.compress(x, COARSE.init(jax.random.key(1), x)[0], compress.SideInfo(jax.random.key(2), 10_000))
    assert scores["eval_up_bytes"] == 3 * len(wire.encode(payload))
    assert scores["accuracy"] != scores["accuracy_uncompressed"]


def test_the_budget_is_that_of_the_ratio_alone(whole):
    setup = own_setup(up=COARSE, caps=(10, 100_000), deadline_s=1e-9)
    scores = score(setup, own_state(setup), 8)
    # Nothing arrives: every answer is the server's to zeros, the bias.
    assert scores["accuracy"] == pytest.approx(np.mean(np.asarray(Y) == 0))
    assert scores["accuracy_uncompressed"] == whole[1]["accuracy"]


@pytest.mark.parametrize("feedback", ["none", "across_steps", "per_sample"])
def test_an_evaluation_leaves_the_state_as_it_was_and_repeats(feedback):
    up = compress.with_feedback(compress.nsc_sl(max_rank=2, view="B,D"), feedback, num_samples=8)
    setup = own_setup(up=up)
    state = own_state(setup)
    before = jax.tree.map(lambda leaf: np.array(leaf), state)
    parts = evaluate.make_parts(setup, 8, 3)
    scores = [evaluate.evaluate(parts, state, X, Y, 8, 3) for _ in range(2)]
    assert same_leaves(state, before)
    assert scores[0] == scores[1]


def test_running_statistics_are_used_and_not_changed():
    def client_apply(params, state, x, is_training):
        assert not is_training
        return x - state["mean"], {"mean": state["mean"] + 1}

    model = split.SplitModel(client_apply, lambda params, state, x, is_training: (x[:, :3], state), stateful=True)
    setup = own_setup(model=model, cut_shape=(8, 4))
    halves = ({}, {"mean": jnp.asarray([1.0, 0, 0, 0])}), ({}, {})
    state = states.init(setup, *halves, (1.0, 1.0))
    expected = np.mean((np.asarray(X) - [1.0, 0, 0, 0])[:, :3].argmax(axis=1) == np.asarray(Y))
    assert score(setup, state, 8)["accuracy"] == pytest.approx(expected)
