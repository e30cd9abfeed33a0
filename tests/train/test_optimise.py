import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import optimise
from train.config import TrainConfig

PARAMS = {"kernel": jnp.array([[0.5, -0.25], [1.0, 2.0]]), "bias": jnp.array([0.5, -1.0])}
GRADS = [{"kernel": jnp.full((2, 2), 0.1 * step), "bias": jnp.array([0.2, -0.1]) * step} for step in (1, -2, 3)]


def settings(**changes):
    return TrainConfig(**{"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, **changes})


def steps(config, grads=GRADS, params=PARAMS, num_steps=10):
    """Returns the parameters after each step."""
    optimiser, rate = optimise.direction(config), optimise.learning_rate(config, num_steps)
    state, seen = optimiser.init(params), []
    for step, grad in enumerate(grads):
        direction, state = optimiser.update(grad, state, params)
        params = optimise.apply(params, direction, rate(step))
        seen.append(params)
    return seen


def test_apply_moves_by_minus_rate_times_direction():
    moved = optimise.apply(PARAMS, GRADS[0], jnp.float32(0.5))
    np.testing.assert_array_equal(moved["kernel"], PARAMS["kernel"] - 0.5 * GRADS[0]["kernel"])
    np.testing.assert_array_equal(moved["bias"], PARAMS["bias"] - 0.5 * GRADS[0]["bias"])


def test_apply_keeps_the_type_of_the_parameters():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    moved = optimise.apply(params, {"w": jnp.ones(2, jnp.bfloat16)}, jnp.float32(0.5))
    assert moved["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(moved["w"].astype(jnp.float32), 0.5)


def test_sgd_is_nesterov_momentum_with_weight_decay_in_the_gradient():
    # Momentum as torch.optim.SGD(momentum=0.9, nesterov=True, weight_decay=0.5) does it, biases left alone.
    kernel, bias = np.array(PARAMS["kernel"], np.float64), np.array(PARAMS["bias"], np.float64)
    kernel_buffer, bias_buffer = np.zeros((2, 2)), np.zeros(2)
    found = steps(settings(optimizer="sgd", learning_rate=0.1, weight_decay=0.5))
    for grad, params in zip(GRADS, found, strict=True):
        kernel_grad = np.array(grad["kernel"], np.float64) + 0.5 * kernel
        bias_grad = np.array(grad["bias"], np.float64)
        kernel_buffer, bias_buffer = 0.9 * kernel_buffer + kernel_grad, 0.9 * bias_buffer + bias_grad
        kernel = kernel - 0.1 * (kernel_grad + 0.9 * kernel_buffer)
        bias = bias - 0.1 * (bias_grad + 0.9 * bias_buffer)
        np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-5)
        np.testing.assert_allclose(params["bias"], bias, rtol=1e-5)


def test_adam_moves_by_the_learning_rate_at_first():
    moved = steps(settings(optimizer="adam", learning_rate=0.25), GRADS[:1])[0]
    np.testing.assert_allclose(moved["kernel"], PARAMS["kernel"] - 0.25, rtol=1e-5)
    np.testing.assert_allclose(moved["bias"], PARAMS["bias"] - 0.25 * np.array([1, -1]), rtol=1e-5)


def test_adamw_decays_beside_the_step_and_adam_within_it():
    nothing = [jax.tree.map(jnp.zeros_like, PARAMS)]
    decayed = steps(settings(optimizer="adamw", learning_rate=0.25, weight_decay=0.5), nothing)[0]
    np.testing.assert_allclose(decayed["kernel"], PARAMS["kernel"] * (1 - 0.25 * 0.5), rtol=1e-6)
    # Adam divides the decay by its own size: a whole step against the sign of each parameter.
    divided = steps(settings(optimizer="adam", learning_rate=0.25, weight_decay=0.5), nothing)[0]
    np.testing.assert_allclose(divided["kernel"], PARAMS["kernel"] - 0.25 * np.sign(PARAMS["kernel"]), atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weight_decay_touches_kernels_only(optimizer):
    params = {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2), "scale": jnp.ones(()), "dense": jnp.ones((2, 2))}
    nothing = [jax.tree.map(jnp.zeros_like, params)]
    moved = steps(settings(optimizer=optimizer, learning_rate=0.1, weight_decay=0.1), nothing, params)[0]
    changed = {name for name in params if not np.array_equal(moved[name], params[name])}
    assert changed == {"kernel", "dense"}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_the_learning_rate_rises_to_its_peak_and_ends_as_its_schedule_says(schedule, warmup):
    config = settings(schedule=schedule, warmup=warmup, learning_rate=0.4)
    rates = np.array([float(optimise.learning_rate(config, 20)(step)) for step in range(21)])
    num_warmup = round(warmup * 20)
    np.testing.assert_allclose(
        rates[: num_warmup + 1], 0.4 * np.arange(1, num_warmup + 2) / (num_warmup + 1), rtol=1e-6
    )
    middle = num_warmup + (20 - num_warmup) // 2
    halfway, last = {"constant": (0.4, 0.4), "cosine": (0.2, 0.0), "linear": (0.2, 0.0)}[schedule]
    np.testing.assert_allclose([rates[middle], rates[20]], [halfway, last], rtol=1e-6, atol=1e-7)
    assert np.all(rates[:20] > 0)
    assert rates.max() == pytest.approx(0.4)


@pytest.mark.parametrize(("warmup", "num_steps"), [(0.05, 1), (0.99, 2), (0.5, 1), (0.0, 1)])
def test_the_shortest_runs_have_a_learning_rate_too(warmup, num_steps):
    rate = optimise.learning_rate(settings(schedule="cosine", warmup=warmup, learning_rate=0.4), num_steps)
    assert all(0 < float(rate(step)) <= 0.4 * (1 + 1e-6) for step in range(num_steps))


def test_the_learning_rate_may_be_traced():
    rate = optimise.learning_rate(settings(schedule="cosine", warmup=0.2, learning_rate=0.4), 20)
    for step in (0, 3, 4, 19):
        assert float(jax.jit(rate)(step)) == pytest.approx(float(rate(step)), rel=1e-6)
