"""Shutdown and signals: everything that waits in this toolkit can be woken from here.

A Python signal handler takes no lock of ours. The interpreter writes the number of each signal to a pipe
(`signal.set_wakeup_fd`) and one daemon thread reads it, sets the stop and wakes the waits.
"""

from __future__ import annotations

import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any


class _Lifecycle:
    """The one stop of this process: asked for once, told to everything that waits."""

    __slots__ = ("callbacks", "handlers", "lock", "pipe", "signals_seen", "stop_signal", "stopping")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.callbacks: dict[object, Callable[[], object]] = {}
        self.stopping = False
        self.stop_signal: int | None = None
        self.signals_seen = 0
        self.handlers: dict[int, Any] = {}
        self.pipe: tuple[int, int] | None = None

    def stop(self) -> None:
        with self.lock:
            self.stopping = True
            told = list(self.callbacks.values())
        for callback in told:
            callback()


_life = _Lifecycle()


def stopping() -> bool:
    """Whether a shutdown was asked for: nothing new is admitted and waits raise `ShutdownInProgress`."""
    return _life.stopping


def stop_signal() -> int | None:
    """The signal that asked for the shutdown, or None."""
    return _life.stop_signal


def on_shutdown(callback: Callable[[], object]) -> Callable[[], None]:
    """Calls `callback` once when a shutdown begins (at once when it already has); returns what detaches it.

    The callback runs in the thread that reads signals or calls `shutdown()`: it must be short and must not raise.
    """
    key = object()
    with _life.lock:
        late = _life.stopping
        if not late:
            _life.callbacks[key] = callback
    if late:
        callback()
    return lambda: _forget(key)


def _forget(key: object) -> None:
    with _life.lock:
        _life.callbacks.pop(key, None)


def begin_shutdown() -> None:
    """Wakes every wait and stops admitting, without waiting for anything."""
    _life.stop()


def reset_after_shutdown() -> None:
    """Admits calls again: for tests and for programs that embed a finished run."""
    with _life.lock:
        _life.stopping = False
        _life.stop_signal = None
        _life.signals_seen = 0


def install_signal_handlers() -> None:
    """Lets the first SIGINT or SIGTERM wake every wait and stop admitting; the second one ends the process hard.

    SIGINT then goes on to the handler that was there before (KeyboardInterrupt by default). After SIGTERM waits
    raise `ShutdownInProgress`, and where no handler was set the main thread leaves with exit code 143.
    Call it from the main thread; calling it again changes nothing.
    """
    import signal

    if _life.handlers:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _life.pipe = (reader, writer)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        previous = signal.getsignal(number)
        if number == signal.SIGINT and previous == signal.SIG_IGN:
            continue
        _life.handlers[number] = previous
        signal.signal(number, _on_signal)
    watched = frozenset(_life.handlers)
    thread = threading.Thread(
        target=_read_signals, args=(reader, previous_fd, watched), name="resilience-signals", daemon=True
    )
    thread.start()


def _read_signals(reader: int, previous_fd: int, watched: frozenset[int]) -> None:
    while True:
        try:
            data = os.read(reader, 64)
        except OSError:
            return
        if not data:
            return
        if previous_fd >= 0:
            try:
                os.write(previous_fd, data)
            except OSError:
                pass
        for number in data:
            if number in watched:
                _life.signals_seen += 1
                _life.stop_signal = _life.stop_signal or number
                if _life.signals_seen > 1:
                    os._exit(128 + number)
                _life.stop()


def _on_signal(number: int, frame: FrameType | None) -> None:
    import signal

    _life.stop_signal = _life.stop_signal or number
    previous = _life.handlers.get(number)
    if callable(previous):
        previous(number, frame)
    elif previous == signal.SIG_DFL:
        raise SystemExit(128 + number)


def _after_fork() -> None:
    _life.lock = threading.Lock()
    _life.callbacks.clear()
    if _life.pipe is not None:
        _restart_reader()


def _restart_reader() -> None:
    """Gives a forked child its own pipe and reader, so that it never reads its parent's signals."""
    import signal

    assert _life.pipe is not None
    for end in _life.pipe:
        try:
            os.close(end)
        except OSError:
            pass
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _life.pipe = (reader, writer)
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watched = frozenset(_life.handlers)
    threading.Thread(target=_read_signals, args=(reader, -1, watched), name="resilience-signals", daemon=True).start()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
