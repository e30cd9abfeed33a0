"""A network as a sequence of named stages: how any run of them is initialised and applied.

Parameters and state are dicts from stage name to what Flax made for that stage; stages that have none are
left out. So the halves of a cut network share out the entries of the whole: ``client | server`` is the whole.
"""

from functools import partial

import jax
from flax import linen as nn

from nscjax.types import Array, Key, PyTree

Stages = tuple[tuple[str, nn.Module], ...]
"""Named modules in order; each is called as ``module(x, is_training)``."""
Trees = dict[str, PyTree]
"""Parameters, or state, by stage name."""


def init(stages: Stages, key: Key, x_spec: jax.ShapeDtypeStruct) -> tuple[Trees, Trees]:
    """Returns the parameters and the state (running statistics) of all stages, both float32.

    Stage i is initialised from ``fold_in(key, i)``, and from shapes alone: no forward pass is computed.

    Args:
        stages: the whole network, so that a stage's parameters do not depend on where the network is cut.
        key: PRNG key.
        x_spec: shape and dtype of a batch of inputs.
    """
    params, state = {}, {}
    for index, (name, stage) in enumerate(stages):
        variables = stage.lazy_init(jax.random.fold_in(key, index), x_spec, is_training=False)
        x_spec = jax.eval_shape(partial(stage.apply, is_training=False), variables, x_spec)
        if "params" in variables:
            params[name] = variables["params"]
        if "batch_stats" in variables:
            state[name] = variables["batch_stats"]
    return params, state


def apply(stages: Stages, params: Trees, state: Trees, x: Array, is_training: bool) -> tuple[Array, Trees]:
    """Returns the output of the last stage, and the new state, which differs from `state` only in training.

    Args:
        stages: any run of stages, also an empty one, which returns `x`.
        params: parameters of these stages.
        state: state of these stages.
        x: input of the first of them, [B, ...].
        is_training: a Python bool: whether to use the batch's statistics and update the running ones.
    """
    new_state = {}
    for name, stage in stages:
        variables = {"params": params.get(name, {}), "batch_stats": state.get(name, {})}
        x, updated = stage.apply(variables, x, is_training, mutable=["batch_stats"])
        if name in state:
            new_state[name] = updated["batch_stats"]
    return x, new_state
