"""What carries requests from a client to a server and replies back: bytes, and how long one may take."""

from collections.abc import Callable
from typing import Protocol

Handler = Callable[[bytes, str], bytes]
"""(request, the client's name) -> reply; at the server."""


class UnreachableError(Exception):
    """A request was not answered: the other party is away, or slow. The same request may be sent again."""


class RefusedError(Exception):
    """A request will never be answered: the other party does not know us, or is no server of ours."""


class Transport(Protocol):
    """One client's way to a server."""

    def call(self, request: bytes, timeout_s: float) -> bytes:
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

    def call(self, request: bytes, timeout_s: float) -> bytes:
        """Returns the reply; `timeout_s` does not count here."""
        del timeout_s
        return self._handler(request, self._name)

    def close(self) -> None:
        """Does nothing."""
