"""Two parties over a network: one request and one reply a message, asked again until answered, applied once.

`transport` says what carries bytes from a client to a server and back, `grpc` does it with mutual TLS, `shaped` makes
one as slow as a recorded link; `envelope` is what the bytes are; `session` gives every request its place, so that a
resend after a broken connection is answered from memory. Frames (`nscjax.wire`) are opaque here. Needs the extra
`remote`.
"""

from nscjax.remote.envelope import PROTOCOL, EnvelopeError
from nscjax.remote.session import Desk, Exchange, Session, StrayedError
from nscjax.remote.shaped import Shaped
from nscjax.remote.transport import Local, RefusedError, Reply, Transfer, Transport, UnreachableError

__all__ = [
    "PROTOCOL",
    "Desk",
    "EnvelopeError",
    "Exchange",
    "Local",
    "RefusedError",
    "Reply",
    "Session",
    "Shaped",
    "StrayedError",
    "Transfer",
    "Transport",
    "UnreachableError",
]
