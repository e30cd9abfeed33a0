import concurrent.futures
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train import main
from train.signals import Signals

ROOT = Path(main.__file__).parents[1]
BUSY = """
import hashlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
from train.signals import Signals, end_at_once
end_at_once()
{then}
print("ready", flush=True)
{busy}
"""
COMPILES = 'hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})'
"""The interpreter does not come to a handler in here."""


def ended(number, busy, then=""):
    """Returns how a process ended that got a signal while it was busy, and what it said."""
    code = BUSY.format(then=then, busy=busy)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, said + errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_anything_to_save_ends_the_program_at_once(number):
    assert ended(number, COMPILES.format(rounds=2**31 - 1)) == (128 + number, "")


@pytest.mark.parametrize(
    "busy",
    [
        COMPILES.format(rounds=10**6),
        "while not signals.received: pass",
        "import threading\nwhile not signals.received: threading.Event().wait(0.2)",
    ],
)
def test_a_signal_that_is_received_does_not(busy):
    busy += "\nimport time; time.sleep(0.2); print(int(signals.received))"
    assert ended(signal.SIGINT, busy, then="signals = Signals().__enter__()") == (0, "2\n")


def test_a_second_one_does_and_so_does_one_after():
    then = "signals = Signals().__enter__(); import os; os.kill(os.getpid(), 2)"
    assert ended(signal.SIGINT, "while True: pass", then) == (130, "")
    assert ended(signal.SIGINT, COMPILES.format(rounds=2**31 - 1), "with Signals(): pass") == (130, "")


@pytest.fixture
def interruptible():
    """Python as started in the foreground: in the background it ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_is_not_held_back():
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_thread_may_train_too():
    # Python delivers signals to the main thread alone, and lets no other one ask for them.
    def enter():
        with Signals() as signals:
            return signals.received

    with concurrent.futures.ThreadPoolExecutor() as threads:
        assert threads.submit(enter).result() == 0


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Signals():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
