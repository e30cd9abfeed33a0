import pytest

from nscjax import link as links
from nscjax.remote import Exchange, Transfer
from train.bandwidth import Bandwidth

CAPS = 50_000, 40_000


def seen(up_s, down_s, round_trip_s=0.04, num_bytes=100_000):
    return Exchange(1, up_s + down_s + round_trip_s + 0.5, Transfer(num_bytes, up_s), Transfer(num_bytes, down_s))


def link(deadline_s):
    return Bandwidth(links.ewma(), deadline_s, (1.0, 2.0))


def test_without_a_deadline_the_config_says_what_is_allowed():
    assert link(None).budgets(CAPS) == CAPS


def test_before_a_transfer_was_seen_the_first_guess_counts():
    assert link(0.1).budgets(CAPS) == (12_500, 25_000)


def test_budgets_follow_what_was_measured():
    followed = link(0.1)
    spent = followed.saw(seen(0.4, 0.8), 0.5, (99_000, 98_000))
    assert spent == pytest.approx(0.4 + 0.8 + 0.04)
    assert followed.rates() == (pytest.approx(2.0), pytest.approx(1.0))
    assert followed.latency_s == pytest.approx(0.02)
    # 0.08 s at 2 Mbit/s are 20,000 bytes, of which the envelope had 1,000; at 1 Mbit/s half, and 2,000.
    assert followed.budgets(CAPS) == (pytest.approx(19_000, abs=2), pytest.approx(8_000, abs=2))


def test_a_fast_link_allows_what_the_config_does():
    followed = link(1.0)
    for _ in range(9):
        followed.saw(seen(0.01, 0.01), 0.5, (100_000, 100_000))
    assert followed.budgets(CAPS) == CAPS


def test_after_an_outage_frames_grow_step_by_step():
    """A frame of 3 kB that passes at once is no sign of a link for a hundred times that."""
    followed = Bandwidth(links.quantile(), 0.2, (1.0, 1.0))
    for _ in range(2):
        followed.saw(seen(4.0, 4.0, num_bytes=3_500), 0.5, (3_000, 3_000))
    sizes = [followed.budgets((1 << 20, 1 << 20))[0]]
    for _ in range(4):
        exchange = Exchange(1, 0.5, *[Transfer(sizes[-1] + 500, 1e-4)] * 2)
        followed.saw(exchange, 0.5, (sizes[-1], sizes[-1]))
        sizes.append(followed.budgets((1 << 20, 1 << 20))[0])
    assert sizes[0] < 1_000
    assert sizes[1] == 1 << 14
    assert sizes[2:] == [1 << 16, 1 << 18, 1 << 20]


def test_a_hopeless_link_allows_nothing():
    followed = link(0.01)
    followed.saw(seen(1.0, 1.0), 0.5, (90_000, 90_000))
    assert followed.budgets(CAPS) == (0, 0)


def test_what_cannot_be_seen_changes_nothing():
    followed = link(0.1)
    followed.saw(Exchange(1, 0.5, Transfer(0, 0.0), Transfer(0, 0.0)), 0.5, (10, 10))
    assert followed.budgets(CAPS) == (12_500, 25_000)


def test_an_answer_from_memory_says_nothing_of_the_latency():
    followed = link(0.1)
    followed.saw(seen(0.4, 0.8), 0.5, (99_000, 98_000))
    resent = Exchange(2, 0.01, Transfer(100_000, 0.4), Transfer(100_000, 0.8))
    assert followed.saw(resent, 0.5, (99_000, 98_000)) == 0
    assert followed.latency_s == pytest.approx(0.02)
