"""Commands under policies: the whole process tree ends at the deadline, and the error shows the last words.

`run(["rsync", "-a", source, target], RetryPolicy(max_retries=2), timeout=60.0)`. The command has a session of its own;
at the deadline, on cancel and on shutdown it is ended with everything below it, in whatever session, before the error
is raised. A command that uses this toolkit inherits the deadline: it finds `RESILIENCE_DEADLINE` (seconds left) and
`RESILIENCE_ATTEMPT` in its environment.
"""

from __future__ import annotations

import os
import selectors
import subprocess
from typing import TYPE_CHECKING, Any

from ..core import lifecycle
from ..core.ambient import current
from ..core.carried import child_environment
from ..core.clock import SYSTEM
from ..core.context import OperationContext
from ..core.errors import (
    ConfigError,
    DeadlineExceeded,
    OperationCancelled,
    ShutdownInProgress,
    require,
    require_count,
    require_seconds,
)
from ..core.history import add_note
from ..core.pipeline import Call, Pipeline
from ..workers import trees
from ..workers.ledger import LEDGER, registered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..manager import ErrorRecoveryManager
    from ..workers.ledger import Register

__all__ = ["CommandFailed", "run"]

TAIL = 2_000  # bytes of each stream that an error shows
CHUNK = 1 << 16
LOOK = 0.02  # seconds between two looks where the system cannot tell of the end of a process


class CommandFailed(subprocess.CalledProcessError):
    """A command ended with another code than 0; its message shows the end of what it said."""

    def __str__(self) -> str:
        return super().__str__() + _last_words(self.output, self.stderr)


def _last_words(output: Any, errors: Any) -> str:
    text = ""
    for name, said in (("stderr", errors), ("stdout", output)):
        if said:
            whole = said if isinstance(said, str) else bytes(said).decode("utf-8", "replace")
            text += f"\n{name}: {'... ' if len(whole) > TAIL else ''}{whole[-TAIL:].rstrip()}"
    return text


class _Attempt:
    """The innermost strategy of `run`: the time limit of one attempt, and its number, for whoever asks inside."""

    def __init__(self, name: str, timeout: float | None) -> None:
        self.name = name
        self.timeout = timeout

    def run(self, proceed: Callable[[Call], Any], call: Call) -> Any:
        context = OperationContext(self.name, self.timeout, parent=current(), is_attempt=True, clock=SYSTEM)
        context.attempt = call.attempt
        with context:
            return proceed(call)


def run(
    cmd: Sequence[str | os.PathLike[str]] | str,
    *policies: Any,
    timeout: float | None = None,
    stall: float | None = None,
    input: str | bytes | None = None,
    text: bool = True,
    check: bool = True,
    shell: bool = False,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    max_output: int | None = None,
    name: str = "",
    manager: ErrorRecoveryManager | None = None,
    operation: str | None = None,
) -> subprocess.CompletedProcess[Any]:
    """Runs `cmd` under the policies (the first one outermost), or as the named `operation` of `manager`.

    One attempt may take `timeout` seconds, and be silent for `stall` seconds; the ambient deadline holds as well. Both
    streams are captured, of each the last `max_output` bytes (None: all). Raises `CommandFailed` for an exit code
    other than 0 (with `check`), `DeadlineExceeded` with `reclaimed=True` once the whole tree has been killed,
    `OperationCancelled`, `ShutdownInProgress`, `OSError` when it cannot be started. `classify()` judges exit codes:
    126, 127 and the like are not tried again. Whatever a command that ended by itself has left running is left alone.
    """
    require_seconds("timeout", timeout, positive=True, optional=True)
    require_seconds("stall", stall, positive=True, optional=True)
    require_count("max_output", max_output, optional=True)
    require(operation is None or manager is not None, "manager", manager, "expected the manager of the operation")
    if isinstance(cmd, str) and not shell:
        raise ConfigError("a command as one string needs shell=True; else give a list of words", key="cmd", value=cmd)
    words = cmd if isinstance(cmd, str) else [os.fspath(word) for word in cmd]
    name = name or operation or os.path.basename(words.split()[0] if isinstance(words, str) else words[0])
    if isinstance(input, str):
        input = input.encode()
    register = None if manager is None else manager.resources.own

    def attempt() -> subprocess.CompletedProcess[Any]:
        told = {**(os.environ if env is None else env), **child_environment(current())}
        options = {"shell": shell, "cwd": cwd, "env": told}
        command = _Command(words, name, input, stall, max_output, options, register)
        code, *said = command.run()
        output, errors = (part.decode("utf-8", "replace") if text else part for part in said)
        if check and code:
            raise CommandFailed(code, words, output, errors)
        return subprocess.CompletedProcess(words, code, output, errors)

    innermost = _Attempt(name, timeout)
    if operation is None or manager is None:
        return Pipeline(*policies, innermost, name=name).call(attempt)
    inside = Pipeline(*policies, innermost, name=name) if policies or timeout is not None else None
    fn = attempt if inside is None else lambda: inside.call(attempt)
    done: subprocess.CompletedProcess[Any] = manager.operation(operation).run(Call(fn, name=operation),
                                                                              isolation="caller")  # fmt: skip
    return done


class _Command:
    """One attempt: a process, its streams, and the wait for both."""

    def __init__(
        self, words: Any, name: str, input: bytes | None, stall: float | None, max_output: int | None,
        options: dict[str, Any], register: Register | None,
    ) -> None:  # fmt: skip
        self.name = name
        self.stall = stall
        self.max_output = max_output
        self.context = current()
        self.begun = self.heard = SYSTEM.monotonic()
        left = None if self.context is None else self.context.remaining()
        self.end = None if left is None else self.begun + left
        if left == 0.0 and self.context is not None:
            raise self.context.deadline_error("queued")
        self.unsent = memoryview(input or b"")
        self.said: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.woken = False
        pipe = subprocess.PIPE
        options.update(stdin=subprocess.DEVNULL if input is None else pipe, stdout=pipe, stderr=pipe)
        self.words, self.options, self.register = words, options, register
        self.process: Any = None  # its Popen, once it has been started

    def run(self) -> tuple[int, bytes, bytes]:
        """Runs it to its end; gives the exit code and what was said."""
        reader, self.waker = os.pipe()  # before the start: what cannot be waited for is not begun
        detached: list[Callable[[], object]] = []
        try:
            os.set_blocking(self.waker, False)
            with selectors.DefaultSelector() as selector:
                detached.append(self._start())
                if self.context is not None:
                    detached.append(self.context.on_cancel(self._wake))
                detached.append(lifecycle.on_shutdown(self._wake))
                self._watch(selector, reader)
                self._wait(selector)
            return self.process.returncode, bytes(self.said["stdout"]), bytes(self.said["stderr"])
        except BaseException:
            if self.process is not None:
                trees.end_tree(self.process.pid)
                self.process.wait()
            raise
        finally:
            for detach in reversed(detached):
                detach()
            self._close(reader)

    def _start(self) -> Callable[[], None]:
        """Starts the process; gives what takes it out of the books."""

        def start() -> int:
            self.process = process = subprocess.Popen(self.words, start_new_session=True, **self.options)
            return int(process.pid)

        pid, owned = registered(self.register, "process", f"{self.name} (command)", start)
        entry = LEDGER.enter("child", self.name, pid=pid, owned=owned)
        return lambda: LEDGER.leave(entry)

    def _wake(self) -> None:
        self.woken = True
        try:
            os.write(self.waker, b"!")
        except OSError:
            pass

    def _close(self, reader: int) -> None:
        waker, self.waker = self.waker, -1
        os.close(waker)
        os.close(reader)
        streams = ("stdin", "stdout", "stderr")
        for stream in (getattr(self.process, name, None) for name in streams):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass

    def _watch(self, selector: selectors.BaseSelector, reader: int) -> None:
        selector.register(reader, selectors.EVENT_READ, "wake")
        for name in ("stdout", "stderr"):
            stream = getattr(self.process, name)
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, name)
        if self.process.stdin is not None:
            os.set_blocking(self.process.stdin.fileno(), False)
            selector.register(self.process.stdin, selectors.EVENT_WRITE, "stdin")
        self.look = None
        try:
            self.death: int | None = os.pidfd_open(self.process.pid)
            selector.register(self.death, selectors.EVENT_READ, "death")
        except (AttributeError, OSError):
            self.death, self.look = None, LOOK

    def _wait(self, selector: selectors.BaseSelector) -> None:
        try:
            while self.process.poll() is None:
                for key, _ in selector.select(self._patience()):
                    self._serve(selector, key)
                if self.woken:
                    raise self._why_woken()
                self._judge_time()
            for name in ("stdout", "stderr"):  # what is there: a grandchild may hold the pipe for ever
                while self._read(name):
                    pass
        finally:
            if self.death is not None:
                os.close(self.death)

    def _patience(self) -> float | None:
        now = SYSTEM.monotonic()
        ends = [end - now for end in (self.end, None if self.stall is None else self.heard + self.stall) if end]
        waits = [max(0.0, wait) for wait in ends] + ([self.look] if self.look is not None else [])
        return min(waits) if waits else None

    def _serve(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        if key.data == "stdin":
            self._write(selector)
        elif key.data in self.said and not self._read(key.data):
            selector.unregister(key.fileobj)
        elif key.data == "death":
            self.process.wait()

    def _read(self, name: str) -> bool:
        """Takes a piece of a stream; False when there is none (now, or any more)."""
        try:
            piece = os.read(getattr(self.process, name).fileno(), CHUNK)
        except BlockingIOError:
            return False
        if not piece:
            return False
        self.heard = SYSTEM.monotonic()
        said = self.said[name]
        said += piece
        if self.max_output is not None and len(said) > self.max_output:
            del said[: len(said) - self.max_output]
        return True

    def _write(self, selector: selectors.BaseSelector) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        try:
            self.unsent = self.unsent[os.write(stdin.fileno(), self.unsent[:CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.unsent = memoryview(b"")
        if not self.unsent:
            selector.unregister(stdin)
            stdin.close()

    def _judge_time(self) -> None:
        now = SYSTEM.monotonic()
        if self.end is not None and now >= self.end and self.context is not None:
            raise self._late(self.context.deadline_error("running"))
        if self.stall is not None and now - self.heard >= self.stall:
            message = f"{self.name!r} has said nothing for {self.stall:g} s and was ended"
            elapsed = now - self.begun
            raise self._late(DeadlineExceeded(message, name=self.name, timeout=self.stall, elapsed=elapsed))

    def _late(self, error: DeadlineExceeded) -> DeadlineExceeded:
        for name, said in self.said.items():
            setattr(error, name, bytes(said[-TAIL:]))
        words = _last_words(self.said["stdout"][-TAIL:], self.said["stderr"][-TAIL:])
        if words:
            add_note(error, f"the last words of {self.name!r}:{words}")
        return error

    def _why_woken(self) -> Exception:
        context = self.context
        while context is not None:
            if context.cancelled:
                return OperationCancelled(name=self.name, reason=context.reason)
            context = context.parent
        return ShutdownInProgress(f"shutdown in progress, {self.name!r} was ended")
