"""Flax networks that can be cut after any of their named stages but the last, the head.

`MODELS` holds the architectures, `cut_names` says where one can be cut, `build` makes the functions of the
two halves and `init` their parameters. Flax is known to this package and to the training program only.

Example:
    >>> import jax
    >>> from nscjax import models
    >>> architecture = dict(name="resnet8", width=16, cut="stage1", num_classes=10)
    >>> model = models.build(**architecture)
    >>> x = jax.numpy.zeros((2, 32, 32, 3))
    >>> client, server = models.init(**architecture, key=jax.random.key(0), x_spec=x)
    >>> smashed, client_state = model.client_apply(*client, x, is_training=False)
    >>> logits, server_state = model.server_apply(*server, smashed, is_training=False)
    >>> smashed.shape, logits.shape
    ((2, 32, 32, 16), (2, 10))

With `second_cut` the stages after it are the client's again (`nscjax.u_shaped`), and their parameters in its half.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from nscjax.check import count, error, one_of
from nscjax.models import stages as _stages
from nscjax.models.bottleneck import bottlenet
from nscjax.models.cnn import cnn
from nscjax.models.layers import NORMS
from nscjax.models.mlp import mlp
from nscjax.models.resnet import resnet8, resnet18, resnet34
from nscjax.models.stages import Stages, Trees
from nscjax.models.vit import vit
from nscjax.split import SplitModel
from nscjax.types import Array, Key

__all__ = ["MODELS", "build", "cut_names", "init"]

MODELS: dict[str, Callable[..., Stages]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet8": resnet8,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vit": vit,
}
"""From config name to the function ``(*, width, num_classes, norm, dtype)`` that makes the named stages."""


def cut_names(name: str) -> tuple[str, ...]:
    """Returns the names of the stages after which model `name` can be cut, from the input on.

    Raises:
        InputError: there is no model of that name.
    """
    # The names do not depend on the sizes.
    stages = _make_stages(name, width=64, num_classes=10, norm="batch", dtype=jnp.float32)
    return tuple(stage_name for stage_name, _ in stages[:-1])


def build(
    name: str,
    *,
    width: int,
    cut: str | None,
    num_classes: int,
    norm: str = "batch",
    dtype: DTypeLike = jnp.float32,
    bottleneck: int | None = None,
    second_cut: str | None = None,
) -> SplitModel:
    """Returns the functions of a network cut in two.

    Both are stateful: ``(params, state, x, is_training) -> (y, new_state)`` with `is_training` a Python bool.
    The client returns `dtype`, the server float32 logits; each casts what it is given to `dtype` first.

    Args:
        name: key of `MODELS`.
        width: number of channels of the first stage, or dimension of a token.
        cut: name of the client's last stage, one of `cut_names`. None leaves the client without a stage: it
            passes its input on, and ``server_apply`` is the whole network.
        num_classes: number of logits.
        norm: ``"batch"`` (running statistics as state) or ``"group"`` (no state).
        dtype: of the computation, float32 or bfloat16. Parameters and state are float32.
        bottleneck: channels of a learned bottleneck at the cut (`nscjax.models.bottleneck`), or None for none.
        second_cut: name of the server's last stage, one of `cut_names` after `cut`: the rest is the client's, and the
            server returns `dtype`, the client's last layers the logits. None leaves all stages to the server.

    Raises:
        InputError: name, a cut, norm or a size is not among those allowed, or the cut cannot have a bottleneck.
    """
    client_stages, server_stages, tail_stages = _parts(
        name, width, cut, num_classes, norm, dtype, bottleneck, second_cut
    )

    def part(stages: Stages) -> Callable[..., tuple[Array, Trees]]:
        def apply(params: Trees, state: Trees, x: Array, is_training: bool) -> tuple[Array, Trees]:
            y, new_state = _stages.apply(stages, params, state, x.astype(dtype), is_training)
            return y, state | new_state if tail_stages else new_state  # of a half in two parts the other part's stays

        return apply

    tail = part(tail_stages) if tail_stages else None
    return SplitModel(part(client_stages), part(server_stages), stateful=True, tail_apply=tail)


def init(
    name: str,
    key: Key,
    x_spec: jax.ShapeDtypeStruct,
    *,
    width: int,
    cut: str | None,
    num_classes: int,
    norm: str = "batch",
    dtype: DTypeLike = jnp.float32,
    bottleneck: int | None = None,
    second_cut: str | None = None,
) -> tuple[tuple[Trees, Trees], tuple[Trees, Trees]]:
    """Returns ``((client_params, client_state), (server_params, server_state))``.

    Each is a dict by stage name with float32 leaves; a state may be empty. The values depend on `key` but not
    on `cut`: ``client_params | server_params`` is the same for every cut.

    Nearly all of the time goes into compiling the random draws. In one jit that does not optimise them,
    ``jax.jit(init_fn, compiler_options={"xla_backend_optimization_level": 0})``, it is a fifth of that.

    Args:
        name: as in `build`, like the arguments that are not named here.
        key: PRNG key.
        x_spec: shape and dtype of a batch of inputs, [B, H, W, C].
        width: as in `build`.
        cut: as in `build`.
        num_classes: as in `build`.
        norm: as in `build`.
        dtype: as in `build`.
        bottleneck: as in `build`.
        second_cut: as in `build`.

    Raises:
        InputError: as in `build`, or the model cannot take images of that size.
    """
    client_stages, server_stages, tail_stages = _parts(
        name, width, cut, num_classes, norm, dtype, bottleneck, second_cut
    )
    variables = _stages.init(client_stages + server_stages + tail_stages, key, x_spec)

    def share(half: Stages) -> tuple[Trees, Trees]:
        params, state = ({n: tree[n] for n, _ in half if n in tree} for tree in variables)
        return params, state

    return share(client_stages + tail_stages), share(server_stages)


def _make_stages(name: str, width: int, num_classes: int, norm: str, dtype: DTypeLike) -> Stages:
    """Returns the stages of the whole network, having checked what they are made from."""
    make = MODELS[one_of("name", name, MODELS)]
    count("width", width, 1)
    count("num_classes", num_classes, 1)
    return make(width=width, num_classes=num_classes, norm=one_of("norm", norm, NORMS), dtype=dtype)


def _parts(
    name: str,
    width: int,
    cut: str | None,
    num_classes: int,
    norm: str,
    dtype: DTypeLike,
    bottleneck: int | None,
    second_cut: str | None,
) -> tuple[Stages, Stages, Stages]:
    """Returns the client's first stages, the server's, and the client's last; none where there is no such cut."""
    stages = _make_stages(name, width, num_classes, norm, dtype)
    names = [stage_name for stage_name, _ in stages[:-1]]
    start = 0 if cut is None else names.index(one_of("cut", cut, names)) + 1
    later = names[start:]  # at least one stage is the server's
    if second_cut is not None and not later:
        raise error("second_cut", second_cut, f"none where the cut, {cut!r}, leaves the server one stage alone")
    end = len(stages) if second_cut is None else start + later.index(one_of("second_cut", second_cut, later)) + 1
    client, server, tail = stages[:start], stages[start:end], stages[end:]
    if bottleneck is None:
        return client, server, tail
    encoder, decoder = bottlenet(client, count("bottleneck", bottleneck, 1), norm, dtype)
    return client + encoder, decoder + server, tail
