import math

import numpy as np
import pytest

from nscjax import check


def test_error_says_what_was_given_what_is_allowed_and_what_to_do():
    problem = check.error("ratio", 0.5, "a number >= 1", "Take 1 for no cap.")
    assert isinstance(problem, check.InputError)
    assert isinstance(problem, ValueError)
    assert str(problem) == "ratio is 0.5; allowed: a number >= 1. Take 1 for no cap."


def test_error_without_a_remedy_ends_with_what_is_allowed():
    assert str(check.error("view", "BX", "'B,D'")) == "view is 'BX'; allowed: 'B,D'."


def test_nearest_asks_for_the_choice_most_like_what_was_given():
    assert check.nearest("nsc-sl", ["identity", "nsc_sl"]) == "Did you mean 'nsc_sl'?"


@pytest.mark.parametrize("given", ["zzz", 3, None])
def test_nearest_is_silent_where_nothing_is_near(given):
    assert check.nearest(given, ["identity", "nsc_sl"]) == ""


@pytest.mark.parametrize(("given", "choices"), [("up", ("up", "down")), (8, (4, 8, 16)), ("a", (c for c in "ab"))])
def test_one_of_returns_a_choice(given, choices):
    assert check.one_of("name", given, choices) == given


def test_one_of_lists_the_choices_and_names_the_nearest():
    with pytest.raises(check.InputError) as caught:
        check.one_of("method", "nscsl", ["identity", "nsc_sl"])
    assert str(caught.value) == "method is 'nscsl'; allowed: 'identity', 'nsc_sl'. Did you mean 'nsc_sl'?"


def test_one_of_takes_choices_that_are_not_text():
    with pytest.raises(check.InputError) as caught:
        check.one_of("factor_bits", 5, (4, 8, 16))
    assert str(caught.value) == "factor_bits is 5; allowed: 4, 8, 16."


@pytest.mark.parametrize("given", [1, 1.0, 7])
def test_at_least_returns_what_is_enough(given):
    assert check.at_least("ratio", given, 1) == given


@pytest.mark.parametrize("given", [0, 0.999, math.inf, -math.inf, math.nan, True, "2", None])
def test_at_least_refuses_what_is_less_or_no_finite_number(given):
    with pytest.raises(check.InputError) as caught:
        check.at_least("ratio", given, 1)
    assert str(caught.value) == f"ratio is {given!r}; allowed: a finite number >= 1."


@pytest.mark.parametrize("given", [np.float32(1), np.float64(1), np.int64(1)])
@pytest.mark.parametrize(
    "checked", [lambda given: check.at_least("weight", given, 0), lambda given: check.fraction("energy", given)]
)
def test_numbers_of_numpy_are_numbers(checked, given):
    assert checked(given) == 1
    assert type(checked(given)) in (int, float)


@pytest.mark.parametrize("given", [1e-9, 0.5, 1, 1.0])
def test_fraction_returns_what_is_above_0_and_at_most_1(given):
    assert check.fraction("energy", given) == given


@pytest.mark.parametrize("given", [0, 0.0, -0.5, 1.0001, math.nan, math.inf, True, "0.5", None])
def test_fraction_refuses_the_rest(given):
    with pytest.raises(check.InputError) as caught:
        check.fraction("energy", given)
    assert str(caught.value) == f"energy is {given!r}; allowed: a number in (0, 1]."
