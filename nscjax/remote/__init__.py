"""Two parties over a network: one request and one reply a message, asked again until answered, applied once.

`transport` says what carries bytes from a client to a server and back, `grpc` does it with mutual TLS; `envelope` is
what the bytes are; `session` gives every request its place, so that a resend after a broken connection is answered from
memory. Frames (`nscjax.wire`) are opaque here. Needs the extra `remote`.
"""

from nscjax.remote.envelope import PROTOCOL, EnvelopeError
from nscjax.remote.session import Desk, Session, StrayedError
from nscjax.remote.transport import Local, RefusedError, Transport, UnreachableError

__all__ = [
    "PROTOCOL",
    "Desk",
    "EnvelopeError",
    "Local",
    "RefusedError",
    "Session",
    "StrayedError",
    "Transport",
    "UnreachableError",
]
