"""Fixtures of the trainer's tests."""

import pytest

from tests.train.runs import quick_compilation


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Makes a module's runs compile quickly, and the same run only once."""
    with quick_compilation(tmp_path_factory.getbasetemp() / "compiled"):
        yield
