import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nscjax.check import InputError
from tests.train.runs import same_leaves
from train import checkpoint


class State(NamedTuple):
    """A pytree with the kinds of containers and leaves that a run's state has."""

    params: dict
    momentum: tuple
    cache: jax.Array
    nothing: tuple
    is_sound: jax.Array
    step: jax.Array


def state(step=0):
    random = np.random.default_rng(step)
    return State(
        params={"conv": {"kernel": jnp.asarray(random.normal(size=(3, 2)), jnp.float32)}, "b": jnp.ones(2)},
        momentum=((), {"conv": jnp.full((3, 2), float(step))}, (jnp.zeros(()),)),
        cache=jnp.asarray(random.normal(size=(4, 5)), jnp.bfloat16),
        nothing=(),
        is_sound=jnp.asarray(True),
        step=jnp.asarray(step, jnp.int32),
    )


def counts(step, **more):
    """What a run counts, as far as it is looked at here."""
    return {"totals": {"steps": step, **more}, "last_eval": {}, "views": None}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def test_what_is_saved_comes_back_to_the_bit(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state(7), counts(7, up_bytes=2**40, link_seconds=0.1 + 0.2))
    with checkpoint.Checkpoints(folder) as checkpoints:
        found = checkpoints.restore(state())
    assert jax.tree.structure(found) == jax.tree.structure(state())
    assert same_leaves(found, state(7))
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(state())]
    assert checkpoint.read_counts(folder) == counts(7, up_bytes=2**40, link_seconds=0.1 + 0.2)


def test_the_newest_counts_and_the_one_before_it_stays(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        for step in (4, 8, 12):
            checkpoints.save(step, state(step), counts(step))
        assert same_leaves(checkpoints.restore(state()), state(12))
    assert sorted(path.name for path in folder.iterdir()) == ["12", "8"]
    assert checkpoint.read_counts(folder) == counts(12)


def test_a_step_is_saved_once(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), counts(4))
        checkpoints.save(4, state(5), counts(4))
        assert same_leaves(checkpoints.restore(state()), state(4))


def test_one_that_was_not_finished_is_ignored(folder):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), counts(4))
    # What a kill during a save leaves behind: the folder has not got its final name yet.
    shutil.copytree(folder / "4", folder / "8.orbax-checkpoint-tmp")
    assert checkpoint.read_counts(folder) == counts(4)
    with checkpoint.Checkpoints(folder) as checkpoints:
        assert same_leaves(checkpoints.restore(state()), state(4))
        checkpoints.save(8, state(8), counts(8))
        assert same_leaves(checkpoints.restore(state()), state(8))


def test_there_are_no_counts_without_a_checkpoint(folder):
    assert checkpoint.read_counts(folder) is None
    folder.mkdir()
    assert checkpoint.read_counts(folder) is None
    assert list(folder.iterdir()) == []


OTHERS = [
    ({"params": {"b": jnp.ones(2)}}, ".params['conv']['kernel'] is 'float32[3, 2]'; allowed: None"),
    ({"cache": jnp.zeros((4, 6), jnp.bfloat16)}, ".cache is 'bfloat16[4, 5]'; allowed: bfloat16[4, 6]"),
    ({"cache": jnp.zeros((4, 5))}, ".cache is 'bfloat16[4, 5]'; allowed: float32[4, 5]"),
    ({"nothing": jnp.ones(1)}, ".nothing is None; allowed: float32[1]"),
]


@pytest.mark.parametrize(("changes", "message"), OTHERS)
def test_arrays_of_another_run_are_refused(folder, changes, message):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), counts(4))
        with pytest.raises(InputError, match=re.escape(f"checkpoint 4: {message}. Data or model have changed since")):
            checkpoints.restore(state()._replace(**changes))


@pytest.mark.parametrize("name", ["counts/metadata", "layout/metadata", "state/_METADATA"])
def test_a_damaged_one_is_named(folder, name):
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(4, state(4), counts(4))
    (folder / "4" / name).write_bytes(b"{damaged")

    def read():
        checkpoint.read_counts(folder)
        with checkpoint.Checkpoints(folder) as checkpoints:
            checkpoints.restore(state())

    with pytest.raises(InputError, match=r"(?s)checkpoint is '.*4'; allowed: one that this run wrote\. .* Remove it"):
        read()


HALVES = [
    ({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}, {"norm": {"mean": jnp.full(3, 0.5)}}),
    ({"w": jnp.ones((2, 3), jnp.bfloat16)}, {}),
    ([{"w": jnp.ones(2)}, {"w": jnp.zeros(3)}], {}),
    (jnp.ones((20, 32)), {}),
    ({}, {}),
]


@pytest.mark.parametrize("half", HALVES)
def test_a_half_is_saved_and_loaded_alone(tmp_path, half):
    about = {"architecture": {"name": "cnn", "width": 8}, "mean": [0.25], "std": None}
    checkpoint.save_half(tmp_path / "halves" / "client", half, about)
    loaded, found = checkpoint.load_half(tmp_path / "halves" / "client")
    assert jax.tree.structure(loaded) == jax.tree.structure(half)
    assert same_leaves(loaded, half)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    assert found == about


def test_a_half_without_running_state_may_say_so_by_an_empty_tuple(tmp_path):
    checkpoint.save_half(tmp_path / "client", ({"w": jnp.ones(2)}, ()), {})
    assert checkpoint.load_half(tmp_path / "client")[0][1] == {}


def test_a_half_replaces_an_earlier_one(tmp_path):
    checkpoint.save_half(tmp_path / "client", ({"w": jnp.ones(2), "v": jnp.ones(1)}, ()), {"run": 1})
    checkpoint.save_half(tmp_path / "client", ({"w": jnp.zeros(3)}, ()), {"run": 2})
    (params, _), about = checkpoint.load_half(tmp_path / "client")
    assert same_leaves(params, {"w": jnp.zeros(3)})
    assert about == {"run": 2}


def test_a_folder_without_a_half_is_refused(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=r"folder of a trained half is '.*'; allowed: halves/client or "):
            checkpoint.load_half(path)
