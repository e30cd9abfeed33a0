import time

import pytest

from nscjax.remote import (
    Desk,
    EnvelopeError,
    Local,
    RefusedError,
    Reply,
    Session,
    StrayedError,
    UnreachableError,
    envelope,
)
from nscjax.remote.session import AnswerError
from nscjax.remote.transport import UNSEEN

ANSWER = {"count": int}


class Counter:
    """A server that counts what it is asked for."""

    def __init__(self):
        self.count = 0

    def serve(self, client, run, kind, fields):
        if kind == "bad":
            raise EnvelopeError("not this")
        self.count += 1
        return {"count": self.count}


class Lossy:
    """A transport that loses the request, the reply, or delivers the request twice, by turns."""

    def __init__(self, handler):
        self._handler, self._calls = handler, 0

    def call(self, request, timeout_s):
        self._calls += 1
        if self._calls % 4 == 1:
            raise UnreachableError("request lost")
        reply = self._handler(request, "client")
        if self._calls % 4 == 2:
            raise UnreachableError("reply lost")
        return Reply(self._handler(request, "client") if self._calls % 4 == 3 else reply, UNSEEN, UNSEEN)

    def close(self):
        pass


def session(transport, run="run", **changes):
    return Session(transport, run, **{"timeout_s": 1.0, "patience_s": 30.0} | changes)


def test_requests_are_applied_once_in_their_order_whatever_is_lost():
    counter = Counter()
    asker = session(Lossy(Desk(counter.serve).handle))
    asker.ask("hello", {}, ANSWER)
    assert counter.count == 1
    assert [asker.ask("step", {}, ANSWER)[0]["count"] for _ in range(12)] == list(range(2, 14))


class Recorder:
    """A way that keeps what was sent."""

    def __init__(self, handler):
        self._handler, self.sent = handler, []

    def call(self, request, timeout_s):
        self.sent.append(request)
        return Reply(self._handler(request, "client"), UNSEEN, UNSEEN)

    def close(self):
        pass


def test_what_an_earlier_session_sent_comes_too_late():
    """The process before had said hello and made a step; both arrive again when the next one is at work."""
    counter = Counter()
    desk = Desk(counter.serve)
    earlier, later = Recorder(desk.handle), session(Local(desk.handle))
    before = session(earlier)
    for kind in ("hello", "step"):
        before.ask(kind, {}, ANSWER)
    later.ask("hello", {}, ANSWER)
    count = counter.count
    for late in earlier.sent:
        assert envelope.unpack(desk.handle(late, "client"))["status"] == "strayed"
    assert counter.count == count
    assert later.ask("step", {}, ANSWER)[0] == {"count": count + 1}


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_names_are_short(name):
    desk = Desk(Counter().serve)
    with pytest.raises(AnswerError, match="1 to 100 letters"):
        session(Local(desk.handle), run=name).ask("hello", {}, ANSWER)


@pytest.mark.parametrize("problem", [AssertionError("this"), RecursionError("deep"), OSError("no room"), MemoryError()])
def test_a_fault_is_an_answer_and_the_servers_own_is_told(problem):
    def serve(client, run, kind, fields):
        raise problem

    faults = []
    desk = Desk(serve, on_fault=faults.append)
    with pytest.raises(AnswerError, match=f"{type(problem).__name__} at the server"):
        session(Local(desk.handle)).ask("hello", {}, ANSWER)
    assert faults == ([problem] if isinstance(problem, OSError | MemoryError) else [])


def test_a_client_that_is_told_to_stop_does_not_wait():
    def nowhere(request, name):
        raise UnreachableError("nobody")

    started = time.monotonic()
    stopped = []
    asker = session(Local(nowhere), patience_s=60.0, on_waiting=stopped.append, is_stopped=lambda: stopped)
    with pytest.raises(UnreachableError):
        asker.ask("hello", {}, ANSWER)
    assert time.monotonic() - started < 30


def test_a_server_started_anew_says_that_it_is_not_in_this_session():
    desks = [Desk(Counter().serve), Desk(Counter().serve)]
    way = Local(lambda data, name: desks[0].handle(data, name))
    asker = session(way)
    asker.ask("hello", {}, ANSWER)
    asker.ask("step", {}, ANSWER)
    desks.pop(0)
    with pytest.raises(StrayedError):
        asker.ask("step", {}, ANSWER)
    assert session(way).ask("hello", {}, ANSWER)[0] == {"count": 1}


def test_another_run_of_the_same_client_takes_the_place_of_the_first():
    desk = Desk(Counter().serve)
    first, second = session(Local(desk.handle), "one"), session(Local(desk.handle), "two")
    first.ask("hello", {}, ANSWER)
    second.ask("hello", {}, ANSWER)
    second.ask("step", {}, ANSWER)
    with pytest.raises(StrayedError):
        first.ask("step", {}, ANSWER)


def test_more_clients_than_allowed_are_refused():
    desk = Desk(Counter().serve, max_clients=1)
    session(Local(desk.handle, "a")).ask("hello", {}, ANSWER)
    with pytest.raises(AnswerError, match="in session already"):
        session(Local(desk.handle, "b")).ask("hello", {}, ANSWER)


def test_a_refused_request_leaves_the_session_as_it_is():
    counter = Counter()
    asker = session(Local(Desk(counter.serve).handle))
    asker.ask("hello", {}, ANSWER)
    with pytest.raises(AnswerError, match="not this"):
        asker.ask("bad", {}, ANSWER)
    assert asker.ask("step", {}, ANSWER)[0] == {"count": 2}


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, envelope.pack({"run": "a"}), envelope.pack({"a": 1})])
def test_a_desk_answers_whatever_comes(data):
    reply = envelope.unpack(Desk(Counter().serve).handle(data, "client"))
    assert reply["status"] == "refused"


def test_patience_ends():
    def nowhere(data, name):
        raise UnreachableError("nobody there")

    waited = []
    with pytest.raises(UnreachableError, match="nobody there"):
        session(Local(nowhere), patience_s=0.2, on_waiting=waited.append).ask("hello", {}, ANSWER)
    assert waited


def test_what_will_never_work_is_not_tried_again():
    calls = []

    def closed(data, name):
        calls.append(name)
        raise RefusedError("no certificate")

    with pytest.raises(RefusedError):
        session(Local(closed)).ask("hello", {}, ANSWER)
    assert len(calls) == 1


def test_an_answer_of_another_form_is_refused():
    with pytest.raises(EnvelopeError, match="answer to hello"):
        session(Local(Desk(Counter().serve).handle)).ask("hello", {}, {"other": int})
