"""The cut as a layer, for anyone's loss: compressed forward, compressed gradient back, by `jax.custom_vjp`.

    layer = cut.cut(compress.Duplex(up=..., down=...))
    state = layer.init(key, spec)

    def loss(params, down, ...):
        smashed = client(params, x)
        smashed, new_up = layer.apply(smashed, state._replace(down=down), side_up, side_down)
        ...

The uplink's new state is an output. The downlink's new state is made in the backward pass, where there is no output:
it leaves as the *cotangent* of `state.down`, so differentiate with respect to it and pass both to `next_state`.
After an uplink message of rank 0 (a budget below one component) the loss is that of zeros: leave out the step, as
`nscjax.split` and the trainer do.

Cotangents add, hence what `next_state` refuses: a state used at two cuts, a state shared under `vmap`, an `x_hat` that
the loss does not use.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nscjax import check
from nscjax.compress import Duplex, SideInfo
from nscjax.types import Array, Key, PyTree


class UpState(NamedTuple):
    """Both ends of the uplink: sender's and receiver's state."""

    enc: PyTree
    dec: PyTree


class DownState(NamedTuple):
    """Both ends of the downlink; every leaf is floating point, for the new state travels as a cotangent.

    Attributes:
        enc: sender's state.
        dec: receiver's state.
        uses: float32 scalar, how many backward passes made this state: 1, or the state is not to be used.
    """

    enc: PyTree
    dec: PyTree
    uses: Array


class CutState(NamedTuple):
    """The state of a cut layer: its uplink and its downlink."""

    up: UpState
    down: DownState


class Cut(NamedTuple):
    """A cut layer.

    Attributes:
        init: `(key, spec) -> CutState`.
        apply: `(x, state, side_up, side_down) -> (x_hat, new_up_state)`; the gradient with respect to `state.down` is
            the new downlink state.
    """

    init: Callable[[Key, jax.ShapeDtypeStruct], CutState]
    apply: Callable[[Array, CutState, SideInfo, SideInfo], tuple[Array, UpState]]


def cut(duplex: Duplex) -> Cut:
    """Returns the layer that passes activations and gradients through `duplex`.

    Raises:
        InputError: by `init`, if the downlink's state has leaves that are not floating point (keep counters in
        float32).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nscjax import compress, cut
        >>> layer = cut.cut(compress.Duplex(up=compress.nsc_sl(), down=compress.nsc_sl()))
        >>> x = jax.random.normal(jax.random.key(0), (8, 16))
        >>> state = layer.init(jax.random.key(1), jax.ShapeDtypeStruct(x.shape, x.dtype))
        >>> side = compress.SideInfo(key=jax.random.key(2), budget_bytes=10_000)
        >>> def loss(x, down):
        ...     x_hat, new_up = layer.apply(x, state._replace(down=down), side, side)
        ...     return jnp.sum(x_hat**2), new_up
        >>> (x_grad, new_down), new_up = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, state.down)
        >>> state = cut.next_state(new_up, new_down)
    """
    if duplex.client_penalty() is not None:
        raise check.error(
            "Duplex.penalty", duplex.client_penalty(), "None", "Add the penalty to your own loss, or use nscjax.split."
        )

    def init(key, spec):
        up_key, down_key = jax.random.split(key)
        down = DownState(*duplex.down.init(down_key, spec), uses=jnp.ones((), jnp.float32))
        for path, leaf in jax.tree_util.tree_leaves_with_path(down):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise check.error(
                    f"state.down{jax.tree_util.keystr(path)}'s dtype", str(leaf.dtype), "floating point",
                    "The new state travels as a cotangent, which integers have none of: keep counters in float32.",
                )  # fmt: skip
        return CutState(UpState(*duplex.up.init(up_key, spec)), down)

    def forward(x, state, side_up, side_down):
        payload, enc = duplex.up.compress(x, state.up.enc, side_up)
        x_hat, dec = duplex.up.decompress(payload, state.up.dec, side_up)
        return (x_hat, UpState(enc, dec)), (payload, dec, state.down, side_down)

    def backward(residuals, cotangents):
        payload, up_dec, down, side_down = residuals
        side_down = duplex.side_down(payload, side_down, up_dec)
        down_payload, enc = duplex.down.compress(cotangents[0], down.enc, side_down)
        x_grad, dec = duplex.down.decompress(down_payload, down.dec, side_down)
        # Under vmap only what depends on the mapped cotangent is summed, and the sum is what gives a shared state away.
        uses = jnp.where(jnp.any(jnp.isnan(cotangents[0])), 1.0, 1.0)
        # The uplink's state, and what both ends know, have no gradient.
        return x_grad, CutState(None, DownState(enc, dec, uses)), None, None  # type: ignore[arg-type]

    @jax.custom_vjp
    def apply(x, state, side_up, side_down):
        return forward(x, state, side_up, side_down)[0]

    apply.defvjp(forward, backward)
    return Cut(init, apply)


def next_state(new_up: UpState, new_down: DownState) -> CutState:
    """Returns the state for the next step from the layer's output and the gradient with respect to `state.down`.

    Call it outside jit: there it checks that exactly one backward pass made the downlink's state.

    Raises:
        InputError: the state was used at two cuts or shared under `vmap` (cotangents add), or the loss did not use
            `x_hat` (the cotangent is zero).
    """
    if not isinstance(new_down.uses, jax.core.Tracer) and (new_down.uses != 1).any():
        raise check.error(
            "uses of the downlink's state in the backward pass", new_down.uses.tolist(), "exactly 1",
            "0: the loss does not use x_hat. More: one state at two cuts, or shared under vmap; give each its own.",
        )  # fmt: skip
    return CutState(new_up, new_down)
