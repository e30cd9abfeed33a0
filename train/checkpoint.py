"""Checkpoints of the whole run by orbax: arrays by their path in the state, and what the host counts, as JSON."""

from pathlib import Path
from typing import Any

import jax
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
            arrays = ocp.args.StandardSave(_by_path(state))
            self._manager.save(step, args=ocp.args.Composite(state=arrays, counts=ocp.args.JsonSave(counts)))

    def restore(self, like: PyTree) -> PyTree:
        """Returns the state of the newest checkpoint, in the structure of `like`.

        Raises:
            InputError: the checkpoint holds other arrays than `like`, or cannot be read.
        """
        step = self._manager.latest_step()
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _by_path(like))
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))[
                "state"
            ]
        except (ValueError, KeyError, OSError, TypeError) as problem:
            raise check.error(
                "checkpoint", str(self._manager.directory / str(step)), "one that this run wrote",
                f"It cannot be read: {str(problem)[:200]}. Remove it to go on from the one before.",
            ) from problem  # fmt: skip
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *problem: object) -> None:
        """Lets go of the folder."""
        self._manager.close()


def read_counts(folder: Path) -> dict[str, Any] | None:
    """Returns the host's values of the newest whole checkpoint in `folder`, or None where there is none."""
    if not folder.is_dir():
        return None
    with ocp.CheckpointManager(folder.resolve()) as manager:
        step = manager.latest_step()
        if step is None:
            return None
        return manager.restore(step, args=ocp.args.Composite(counts=ocp.args.JsonRestore()))["counts"]


def _by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by their path, in tree order: independent of how containers are spelled in a checkpoint."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def save_half(folder: Path, half: PyTree, about: dict[str, Any]) -> None:
    """Saves one trained half on its own, replacing an earlier one.

    Args:
        folder: where to.
        half: (params, running state), nested dicts of arrays.
        about: JSON-ready description, such as how to build the network again.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(
            half=ocp.args.StandardSave({"params": half[0], "state": half[1]} if half[1] else {"params": half[0]}),
            about=ocp.args.JsonSave(about),
        )
        checkpointer.save(folder.resolve(), args=items, force=True)


def load_half(folder: Path) -> tuple[tuple[PyTree, PyTree], dict[str, Any]]:
    """Returns what `save_half` saved: ((params, state), about); arrays are numpy's.

    Raises:
        InputError: there is no saved half in `folder`.
    """
    if not (folder / "about").is_dir():
        raise check.error(
            "folder of a trained half", str(folder), "a folder written by save_half, such as halves/client"
        )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(half=ocp.args.StandardRestore(), about=ocp.args.JsonRestore())
        found = checkpointer.restore(folder.resolve(), args=items)
    half = jax.tree.map(np.asarray, found["half"])
    return (half["params"], half.get("state", {})), found["about"]
