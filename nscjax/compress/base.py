"""What a compressor is: `SideInfo`, `Compressor`, `Duplex`, and the compressor that does nothing.

A compressor is a tuple of pure functions. State goes in and comes out as an ordinary value; the sender's (`enc`) and
the receiver's (`dec`) are separate. A payload is a pytree of arrays with static metadata (`nscjax.layout`): nothing
else crosses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from nscjax import layout
from nscjax.types import Array, Key, PyTree


class SideInfo(NamedTuple):
    """What both ends know about one message without sending it; every leaf may be traced.

    Attributes:
        key: PRNG key of this step and direction, from (seed, step), never from state.
        budget_bytes: int32, the largest frame allowed, header included. Below the method's `min_bytes`, and below 0,
            the message is skipped: its frame is a header alone, which may be longer than such a budget.
        sample_ids: int32 [B], which training samples the batch holds; needed by per-sample feedback alone.
        support: what the other direction's payload fixed (for example a top-k mask), or None.
    """

    key: Key
    budget_bytes: Array | int
    sample_ids: Array | None = None
    support: Any = None


class Init(Protocol):
    """Makes the two states for a cut tensor of one shape and dtype."""

    def __call__(self, key: Key, spec: jax.ShapeDtypeStruct) -> tuple[PyTree, PyTree]:
        """Returns `(enc_state, dec_state)`, pytrees of arrays (possibly empty)."""


class Compress(Protocol):
    """Turns a cut tensor into a payload, at the sender."""

    def __call__(self, x: Array, enc_state: PyTree, side: SideInfo) -> tuple[PyTree, PyTree]:
        """Returns `(payload, enc_state)`. Never raises inside jit: what cannot be afforded has rank 0."""


class Decompress(Protocol):
    """Turns a payload back into a cut tensor, at the receiver."""

    def __call__(self, payload: PyTree, dec_state: PyTree, side: SideInfo) -> tuple[Array, PyTree]:
        """Returns `(x_hat, dec_state)`, with the shape and dtype of the compressed tensor."""


Penalty = Callable[[Array, PyTree, PyTree], Array]
"""(cut tensor, its payload, the sender's state after it) -> scalar, differentiable in the tensor."""


class Compressor(NamedTuple):
    """Pure functions that compress one direction of a cut.

    Attributes:
        init: `(key, spec) -> (enc_state, dec_state)`.
        compress: `(x, enc_state, side) -> (payload, enc_state)`.
        decompress: `(payload, dec_state, side) -> (x_hat, dec_state)`.
        num_bytes: `(payload) -> int32`, the length of the frame that `nscjax.wire.encode` makes of it.
        min_bytes: `(spec) -> int`, the smallest frame that carries anything.
        support: `(payload, state) -> SideInfo.support` of the other direction: what an uplink's message fixes for the
            gradient, from its payload and either end's state after it; None for the many methods that fix nothing.
        penalty: `(x, payload, enc_state) -> scalar` that the method adds to its sender's own loss, from the tensor, its
            message and the sender's state after it; None for the many that add none.
    """

    init: Init
    compress: Compress
    decompress: Decompress
    num_bytes: Callable[[PyTree], Array]
    min_bytes: Callable[[jax.ShapeDtypeStruct], int]
    support: Callable[[PyTree, PyTree], Any] | None = None
    penalty: Penalty | None = None


class Duplex(NamedTuple):
    """The two directions of a cut.

    Attributes:
        up: compressor of the activations, client to server.
        down: compressor of their gradients, server to client.
        share: `(up_payload, side) -> side` for the way down; by default the uplink's `support`, where the downlink
            is of the same method.
        penalty: `(x, up_payload, up_state) -> scalar` added to the client's own loss; by default the uplink's.
    """

    up: Compressor
    down: Compressor
    share: Callable[[PyTree, SideInfo], SideInfo] | None = None
    penalty: Penalty | None = None

    def side_down(self, up_payload: PyTree, side: SideInfo, up_state: PyTree = None) -> SideInfo:
        """Returns the downlink's side information with what the uplink's message fixes.

        Args:
            up_payload: of the uplink.
            side: of the downlink.
            up_state: either end's state of the uplink after that message; few methods look at it.
        """
        if self.share is not None:
            return self.share(up_payload, side)
        if self.up.support is None or _kind(self.up.support) != _kind(self.down.support):
            return side  # the other method would not know what it says
        return side._replace(support=self.up.support(up_payload, up_state))

    def client_penalty(self) -> Penalty | None:
        """Returns what the client adds to its own loss, or None."""
        return self.penalty or self.up.penalty


def _kind(support: Callable | None) -> tuple[str, str]:
    """Returns which function it is: that of one method, made for whatever settings."""
    return getattr(support, "__module__", ""), getattr(support, "__qualname__", "")


@layout.payload(tag=1)
class Dense:
    """A tensor as it is.

    Attributes:
        values: the cut tensor, any shape and dtype that may cross.
    """

    values: Array = layout.array()

    def problem(self, max_bytes: int) -> str | None:
        """Returns what is wrong with a payload read from a frame's own header, or None."""
        del max_bytes
        return None


def no_state(key: Key, spec: jax.ShapeDtypeStruct) -> tuple[PyTree, PyTree]:
    """Returns the two states of a method that carries nothing from message to message: its `init`."""
    del key, spec
    return (), ()


def identity() -> Compressor:
    """Returns the compressor that sends the tensor as it is, whatever the budget: the uncompressed rival."""

    def compress(x, enc_state, side):
        del side
        return Dense(values=x), enc_state

    def decompress(payload, dec_state, side):
        del side
        return payload.values, dec_state

    def min_bytes(spec):
        return layout.frame_bytes(Dense(values=spec))

    return Compressor(no_state, compress, decompress, layout.num_bytes, min_bytes)
