"""Checkpoints of the whole run by orbax: arrays by their path in the state, and what the host counts, as JSON."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from nscjax import check
from nscjax.types import PyTree

KEPT = 2
"""How many checkpoints stay: the newest, and one before it in case the newest is damaged."""


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder`, which need not exist yet; unfinished checkpoints in it are ignored."""
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, step: int, state: PyTree, counts: dict[str, Any]) -> None:
        """Saves the state after `step` steps; an earlier one of the same step stays.

        Args:
            step: how many steps were made.
            state: any pytree of arrays.
            counts: JSON-ready values that the host keeps.
        """
        if step not in self._manager.all_steps():
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(_by_path(state)),
                layout=ocp.args.JsonSave(_layout(state)),
                counts=ocp.args.JsonSave(counts),
            )
            self._manager.save(step, args=items)

    def steps(self) -> list[int]:
        """Returns the steps of which there are checkpoints."""
        return sorted(self._manager.all_steps())

    def counts(self, step: int) -> dict[str, Any]:
        """Returns what the host kept with the checkpoint of `step`; raises an `InputError` if it cannot be read."""
        return _counts(self._manager, step)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps than `step`."""
        for later in [found for found in self._manager.all_steps() if found > step]:
            self._manager.delete(later)

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """Returns the state of the checkpoint of `step`, by default the newest, in the structure of `like`.

        Raises:
            InputError: the checkpoint holds other arrays than `like`, or cannot be read.
        """
        # Compared before anything is read: orbax finds out in the middle of it, and prints what it left undone.
        step = self._manager.latest_step() if step is None else step
        saved, expected = _read(self._manager, step, "layout", ocp.args.JsonRestore()), _layout(like)
        for path in {**saved, **expected}:
            if saved.get(path) != expected.get(path):
                raise check.error(
                    f"checkpoint {step}: {path or 'state'}", saved.get(path),
                    str(expected.get(path)), "Data or model have changed since; give another --run_dir.",
                )  # fmt: skip
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for path, leaf in _by_path(like).items()
        }
        found = _read(self._manager, step, "state", ocp.args.StandardRestore(wanted))
        # By path, for what comes back has an order of its own; by way of the host, for orbax ties arrays to their
        # device, and jitted functions would be compiled once for tied and once for free ones.
        return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(np.asarray(found[path])) for path in wanted])

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Lets go of the folder."""
        self._manager.close()


def read_counts(folder: Path) -> dict[str, Any] | None:
    """Returns the host's values of the newest whole checkpoint in `folder`, or None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    if not folder.is_dir():
        return None
    with ocp.CheckpointManager(folder.resolve()) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        return _counts(manager, step)


def steps(folder: Path) -> list[int]:
    """Returns the steps of which there are whole checkpoints in `folder`."""
    if not folder.is_dir():
        return []
    with Checkpoints(folder) as checkpoints:
        return checkpoints.steps()


def _counts(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    counts = _read(manager, step, "counts", ocp.args.JsonRestore())
    try:
        is_whole = counts["totals"]["steps"] == step and {*counts} == {"totals", "last_eval", "views"}
    except (TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise check.error(
            "checkpoint", str(Path(manager.directory) / str(step)), f"one that this run wrote after {step} steps",
            "What it counts is something else. Remove it to go on from the one before.",
        )  # fmt: skip
    return counts


def _read(manager: ocp.CheckpointManager, step: int, item: str, how: Any) -> Any:
    """Returns one item of the checkpoint of `step`."""
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: how}))[item]
    except (ValueError, KeyError, OSError, TypeError) as problem:
        raise check.error(
            "checkpoint", str(manager.directory / str(step)), "one that this run wrote",
            f"It cannot be read: {str(problem)[:200]}. Remove it to go on from the one before.",
        ) from problem  # fmt: skip


def _layout(tree: PyTree) -> dict[str, str]:
    """Returns dtype and shape of the leaves by their path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _by_path(tree).items()}


def _by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by their path, in tree order: independent of how containers are spelled in a checkpoint."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def save_half(folder: Path, half: PyTree, about: dict[str, Any]) -> None:
    """Saves a trained half on its own, replacing an earlier one.

    Args:
        folder: where to.
        half: (params, running state), any pytrees of arrays.
        about: JSON-ready description, such as how to build the network again.
    """
    params, state = half
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        saved = {"params": params, "state": state} if jax.tree.leaves(state) else {"params": params}
        items = ocp.args.Composite(half=ocp.args.StandardSave(saved), about=ocp.args.JsonSave(about))
        checkpointer.save(folder.resolve(), args=items, force=True)


def load_half(folder: Path, like: PyTree | None = None) -> tuple[tuple[PyTree, PyTree], dict[str, Any]]:
    """Returns what `save_half` saved: ((params, state), about); arrays are numpy's.

    Args:
        folder: a saved half.
        like: (params, state) in whose structure the half is returned; without it, in dicts and lists.

    Raises:
        InputError: there is no saved half in `folder`, or `like` has other leaves.
    """
    if not (folder / "about").is_dir():
        raise check.error(
            "folder of a trained half", str(folder), "halves/client or halves/server of a finished run",
            "Give the run_dir of a run that came to its end.",
        )  # fmt: skip
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(half=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
            found = checkpointer.restore(folder.resolve(), args=items)
        restored = jax.tree.map(np.asarray, found["half"])
        half = restored["params"], restored.get("state", {})
    except (ValueError, KeyError, OSError, TypeError) as problem:
        raise check.error(
            "trained half", str(folder), "one that a run wrote",
            f"It cannot be read: {str(problem)[:200]}. Make the run again.",
        ) from problem  # fmt: skip
    if like is None:
        return half, found["about"]
    leaves, names = _by_name(half), list(_by_name(like))
    if set(names) != set(leaves):
        raise check.error(
            f"half in {folder}", sorted(leaves), str(sorted(names)), "It was saved from another model than this one."
        )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in names]), found["about"]


def _by_name(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by their path spelled as "0/dense/kernel": the same for dicts, sequences and NamedTuples."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
