"""SIGINT and SIGTERM: a value that a loop looks at, and before there is anything to save, the end at once."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """The signals as a value that the loop looks at; a second one is not held back."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._watched = -1

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # no other one may ask for signals
            # Whoever watches would see the handler that `_receive` has put back, and take the first for a second one.
            self._watched = signal.set_wakeup_fd(-1)
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._watched >= 0:
            signal.set_wakeup_fd(self._watched, warn_on_full_buffer=False)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self._before[number])


def end_at_once() -> None:
    """Lets a signal end this process, with exit code 128 + its number, wherever no `Signals` receives it.

    Not by an exception: that would wait for XLA to finish compiling, could be lost in a callback, and the interpreter
    would be taken down beside threads that still compile, which crashes.
    """
    # Handlers run between two instructions of the main thread; the byte in the pipe comes while it compiles, too.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # in the background of a shell
            signal.signal(number, _end)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        if signal.getsignal(number[0]) is _end:
            _end(number[0], None)


def _end(number: int, _frame: FrameType | None) -> None:
    if sys.stderr.isatty():  # a spinner may have hidden the cursor
        os.write(2, b"\x1b[?25h\n")
    os._exit(128 + number)
