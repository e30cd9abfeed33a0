"""What carries requests from a client to a server and replies back: bytes, and how long one may take."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

Handler = Callable[[bytes, str], bytes]
"""(request, the client's name) -> reply; at the server."""


class UnreachableError(Exception):
    """A request was not answered: the other party is away, or slow. The same request may be sent again."""


class RefusedError(Exception):
    """A request will never be answered: the other party does not know us, or is no server of ours."""


class Transfer(NamedTuple):
    """How long bytes took, as the receiver saw it: from the first of a message to the last, without latency.

    Attributes:
        num_bytes: that came after the first; 0 where nothing was seen.
        seconds: that they took.
    """

    num_bytes: int
    seconds: float


UNSEEN = Transfer(0, 0.0)
"""Of a way on which nothing can be seen."""


class Reply(NamedTuple):
    """What comes of a request.

    Attributes:
        data: of the reply.
        up: how the request went.
        down: how the reply came.
    """

    data: bytes
    up: Transfer
    down: Transfer


class Transport(Protocol):
    """One client's way to a server."""

    def call(self, request: bytes, timeout_s: float) -> Reply:
        """Returns the reply.

        Raises:
            UnreachableError: no reply within `timeout_s` seconds.
            RefusedError: there will never be one.
        """

    def close(self) -> None:
        """Lets go of the connection."""


class Local:
    """A server in this process: for tests, and to see what a network costs."""

    def __init__(self, handler: Handler, name: str = "client") -> None:
        """Makes the way to `handler` for the client `name`."""
        self._handler, self._name = handler, name

    def call(self, request: bytes, timeout_s: float) -> Reply:
        """Returns the reply; `timeout_s` does not count here."""
        del timeout_s
        return Reply(self._handler(request, self._name), UNSEEN, UNSEEN)

    def close(self) -> None:
        """Does nothing."""
