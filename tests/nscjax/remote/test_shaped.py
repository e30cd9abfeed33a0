import jax.numpy as jnp
import pytest

from nscjax import link as links
from nscjax.remote import Local, Shaped, UnreachableError


class Virtual:
    """A clock that only sleeping moves on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def shaped(up, down, latency_s=0.0, handler=lambda request, name: request):
    clock = Virtual()
    return Shaped(Local(handler), up, down, latency_s, clock=clock, sleep=clock.sleep), clock


def test_a_message_takes_as_long_as_its_link_would():
    way, clock = shaped(links.constant(8.0), links.constant(80.0), latency_s=0.03)
    reply = way.call(bytes(1_000_000), 60.0)
    assert reply.up == (1_000_000, pytest.approx(1.0))
    assert reply.down == (1_000_000, pytest.approx(0.1))
    assert clock.now - 100 == pytest.approx(1.1 + 2 * 0.03)


def test_the_trace_runs_with_the_clock():
    trace = links.Trace(*map(jnp.float32, ([10.0, 10.0], [8.0, 0.8])))
    way, clock = shaped(trace, links.unlimited())
    assert way.call(bytes(100_000), 60.0).up.seconds == pytest.approx(0.1)
    clock.now = 115.0  # in the slow half
    assert way.call(bytes(100_000), 60.0).up.seconds == pytest.approx(1.0)


def test_a_link_that_is_too_slow_is_no_answer():
    way, clock = shaped(links.constant(0.008), links.unlimited())
    with pytest.raises(UnreachableError, match=r"10\.0 s for 10000 bytes"):
        way.call(bytes(10_000), 5.0)
    assert clock.now == 105.0


def test_a_reply_that_is_too_slow_is_no_answer():
    way, clock = shaped(links.unlimited(), links.constant(0.008))
    with pytest.raises(UnreachableError):
        way.call(bytes(10_000), 5.0)
    assert clock.now == 105.0
