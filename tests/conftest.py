"""Switches of the whole suite: the processor, hypothesis, and JAX's strict promotion of shapes and dtypes."""

import os

# What the suite claims to the last bit holds on a CPU; set JAX_PLATFORMS to try another machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")

FLAX_ROOMS = ("models", "train")


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """Keeps what was compiled for tests that compile the same again, in either worker: a fifth of the suite's time."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True, scope="module")
def strict_promotion(request):
    """Refuses implicit broadcasting across ranks and implicit dtype promotion, but where Flax itself does both."""
    if set(FLAX_ROOMS) & set(request.path.parts):
        yield
    else:
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            yield
