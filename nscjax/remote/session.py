"""Sessions: every request has its place (run, session, sequence); a resend is answered from memory, not applied twice.

A session is one process's conversation about a run, known by a number that nobody else has: what an earlier one sent
and the network kept is not taken for this one's.
"""

import collections
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tenacity

from nscjax.remote import envelope
from nscjax.remote.transport import Reply, Transfer, Transport, UnreachableError

REQUEST: envelope.Schema = {"run": str, "session": str, "sequence": int, "kind": str, "body": bytes}
REPLY: envelope.Schema = {"sequence": int, "status": str, "body": bytes}
STATUSES = ("done", "refused", "strayed")
"""`done`: the body is the answer. `refused`: it is why there is none. `strayed`: the server is not in this session."""

LONGEST_NAME = 100
"""Characters of the name of a run or a session."""

RETIRED = 1000
"""So many ended sessions are known as such."""

LONGEST_WAIT_S = 10.0
"""The most seconds between two attempts to reach a server."""


class StrayedError(Exception):
    """The server is not where this client is, for it was started anew: agree on a common step again."""


class AnswerError(Exception):
    """The server refused a request; the message is its own."""


class Exchange(NamedTuple):
    """How a request was answered, at the last attempt.

    Attributes:
        attempts: how often it was sent.
        seconds: from sending it to having the answer.
        up: how the request went.
        down: how the answer came.
    """

    attempts: int
    seconds: float
    up: Transfer
    down: Transfer


class Session:
    """The client's end: asks until it is answered, within its patience."""

    def __init__(
        self,
        transport: Transport,
        run: str,
        *,
        timeout_s: float,
        patience_s: float,
        on_waiting: Callable[[str], Any] = lambda _: None,
        is_stopped: Callable[[], Any] = lambda: False,
    ) -> None:
        """Makes a session.

        Args:
            transport: the way to the server.
            run: which run this is, the same at every attempt to go on with it.
            timeout_s: seconds that one attempt may take.
            patience_s: seconds after which a server that does not answer is given up.
            on_waiting: told why a request is sent again.
            is_stopped: whether to give up at once instead of sending again.
        """
        self._transport, self._run, self._timeout_s = transport, run, timeout_s
        self._session, self._sequence = uuid.uuid4().hex, 0
        self._is_stopped = is_stopped
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(UnreachableError),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_S),
            stop=self._stop(patience_s),
            sleep=self._sleep,
            before_sleep=lambda attempt: on_waiting(str(attempt.outcome and attempt.outcome.exception())),
            reraise=True,
        )
        self.sent_bytes = self.received_bytes = 0

    def ask(
        self, kind: str, fields: Mapping[str, Any], schema: envelope.Schema, patience_s: float | None = None
    ) -> tuple[dict[str, Any], Exchange]:
        """Returns (the answer, how it came).

        Args:
            kind: of the request.
            fields: of its body.
            schema: of the answer.
            patience_s: in place of the session's.

        Raises:
            UnreachableError: no answer within the patience.
            RefusedError: there will never be one.
            StrayedError: the server is not in this session.
            AnswerError: the server refused.
            EnvelopeError: what came is no answer.
        """
        request = envelope.pack(
            {"run": self._run, "session": self._session, "sequence": self._sequence, "kind": kind,
             "body": envelope.pack(fields)}
        )  # fmt: skip
        attempts = 0

        def attempt() -> tuple[Reply, float]:
            nonlocal attempts
            attempts += 1
            started = time.monotonic()
            self.sent_bytes += len(request)
            return self._transport.call(request, self._timeout_s), time.monotonic() - started

        stop = self._retrying.stop if patience_s is None else self._stop(patience_s)
        came, seconds = self._retrying.copy(stop=stop)(attempt)
        self.received_bytes += len(came.data)
        reply = envelope.unpack(came.data)
        envelope.check(reply, REPLY, "reply")
        if reply["status"] == "strayed":
            raise StrayedError(reply["body"].decode(errors="replace"))
        if reply["sequence"] != self._sequence or reply["status"] not in STATUSES:
            raise envelope.EnvelopeError(f"reply is {reply['status']!r:.40} to {reply['sequence']}")
        if reply["status"] == "refused":
            raise AnswerError(reply["body"].decode(errors="replace"))
        self._sequence += 1
        answer = envelope.unpack(reply["body"])
        envelope.check(answer, schema, f"answer to {kind}")
        return answer, Exchange(attempts, seconds, came.up, came.down)

    def _stop(self, patience_s: float) -> Callable[[tenacity.RetryCallState], bool]:
        is_late = tenacity.stop_after_delay(patience_s)
        return lambda attempt: bool(self._is_stopped()) or is_late(attempt)

    def _sleep(self, seconds: float) -> None:
        """Sleeps until it is time, or there is nothing more to wait for."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self._is_stopped():
            time.sleep(min(left, 0.1))


class Desk:
    """The server's end: takes requests in their order, one at a time, and keeps the last reply of every client.

    A request of sequence 0 opens a session, also in the place of an earlier one of the same client.
    """

    def __init__(
        self,
        serve: Callable[[str, str, str, dict[str, Any]], Mapping[str, Any]],
        max_clients: int = 1,
        on_fault: Callable[[Exception], Any] = lambda _: None,
        on_refused: Callable[[str], Any] = lambda _: None,
    ) -> None:
        """Makes the desk.

        Args:
            serve: `(client, run, kind, fields) -> answer`; an `EnvelopeError` or `ValueError` refuses the request.
            max_clients: how many clients may be in session.
            on_fault: told of what is the server's own affair: no room on its disk, in its memory, on its device.
            on_refused: told which client was refused a session, and why.
        """
        self._serve, self._max_clients = serve, max_clients
        self._on_fault, self._on_refused = on_fault, on_refused
        self._last: dict[str, tuple[tuple[str, str], int, bytes]] = {}
        self._retired: collections.deque[tuple[str, str]] = collections.deque(maxlen=RETIRED)
        self._lock = threading.Lock()

    def handle(self, data: bytes, client: str) -> bytes:
        """Returns the reply to a request from anywhere; never raises for what a client sends."""
        try:
            request = envelope.unpack(data)
            envelope.check(request, REQUEST, "request")
        except envelope.EnvelopeError as problem:
            return _reply(-1, "refused", str(problem).encode())
        with self._lock:
            return self._handle(request, client)

    def _handle(self, request: dict[str, Any], client: str) -> bytes:
        run, sequence, session = request["run"], request["sequence"], (request["run"], request["session"])
        if not all(0 < len(name) <= LONGEST_NAME for name in session):
            return _reply(sequence, "refused", f"names of run and session have 1 to {LONGEST_NAME} letters".encode())
        last_session, last_sequence, last_reply = self._last.get(client, (("", ""), -1, b""))
        is_known = session == last_session
        if is_known and sequence == last_sequence:
            return last_reply
        is_new = sequence == 0 and not is_known and session not in self._retired
        if not (is_new or (is_known and sequence == last_sequence + 1)):
            return _reply(sequence, "strayed", f"the server is at request {last_sequence} of this session".encode())
        if client not in self._last and len(self._last) >= self._max_clients:
            return _reply(sequence, "refused", f"{self._max_clients} client(s) are in session already".encode())
        try:
            fields = envelope.unpack(request["body"])
            answer = self._serve(client, run, request["kind"], fields)
        except StrayedError as problem:
            return _reply(sequence, "strayed", str(problem).encode())
        except ValueError as problem:  # wire errors and input errors are such
            if sequence == 0:
                self._on_refused(f"client {client} is refused: {problem}")
            return _reply(sequence, "refused", str(problem).encode())
        except Exception as problem:
            if isinstance(problem, OSError | MemoryError | RuntimeError) and not isinstance(problem, RecursionError):
                self._on_fault(problem)
            return _reply(sequence, "refused", f"{type(problem).__name__} at the server: {problem}"[:1000].encode())
        reply = _reply(sequence, "done", envelope.pack(answer))
        if is_new and client in self._last:
            self._retired.append(last_session)
        self._last[client] = session, sequence, reply
        return reply


def _reply(sequence: int, status: str, body: bytes) -> bytes:
    return envelope.pack({"sequence": sequence, "status": status, "body": body})
