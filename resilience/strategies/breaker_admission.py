"""Who may pass a breaker, and what came of it: grants given and answered, and the state they change.

Everything here decides by `rules.breaker`, under a lock that is held for the change only; verdicts, logs, events and
clock readings happen outside of it.
"""

from __future__ import annotations

from ..core.errors import CircuitOpenError, ErrorCategory
from ..rules import breaker as rules
from .breaker_core import HAS_GIL, NEVER, Core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from .breaker_books import Books

    # what a call holds: the token it has seen, or (generation, place, start of the call)
    Grant: TypeAlias = int | tuple[int, int, float]

NO_RESULT = object()  # the answer of a call whose result nobody has seen
UNREADABLE = "(its message cannot be shown)"
PERMANENT, LOGIC = ErrorCategory.PERMANENT, ErrorCategory.LOGIC
_FREE: Grant = -1  # the grant of a call that passed a disabled breaker; never equal to a token
refused: Any = CircuitOpenError.__new__  # (CircuitOpenError, refusal, now): no Python code runs to make one


class Admission(Core):
    """The part of a breaker that a pipeline talks to when it makes the healthy call itself.

    `token` is not 0 while a call may run at once; a success under the same token is just `successes += 1`. Otherwise
    `admit()`, and then `on_success`, `on_failure` or `on_ignored` with the grant, which for a call that began under a
    token is `adopt(token)`. Whoever wants to refuse from its own frame looks at `refusal`: until its time has come,
    `rejected += 1` and raise `refused(refusal, now)`. Safe to use from any thread.
    """

    __slots__ = ()

    def admit(self) -> Grant:
        """The grant for one call, or `CircuitOpenError`; to be answered by one of the methods below."""
        books = self._books or self._open_books()
        now = self.clock.monotonic()
        if HAS_GIL:  # single statements, so exact without the lock
            if (refusal := self.refusal) is not None and now < refusal[0]:
                self.rejected += 1
                raise refused(CircuitOpenError, refusal, now)
            if generation := books.passing:
                books.permitted += 1
                return generation, rules.FREE, now
        return self._admit_by_rule(books, now)

    def _admit_by_rule(self, books: Books, now: float) -> Grant:
        state = books.state
        told = None if books.shared is None else books.shared.admit(self, books)
        with books.lock:
            news = None
            if told is not None:
                place, generation, news = told
            else:
                mode, generation = state.mode, state.generation
                place = rules.admit(state, self.config, now)
                changed = generation != state.generation
                generation = state.generation
                news = self._notice_held(books, mode, rules.CHANGED) if changed else None
            if place is None:
                books.rejected += 1
                wait = rules.retry_after(state, self.config, now)
                refusal = NEVER if wait is None else now + wait, self.name, state.mode.value, books.last_error()
            elif place != rules.UNCOUNTED:
                books.permitted += 1
        if news is not None:
            self._tell(*news)
        if place is None:
            raise refused(CircuitOpenError, refusal, now)
        return _FREE if place == rules.UNCOUNTED else (generation, place, now)

    def adopt(self, token: int) -> Grant:
        """The grant of a call that began under `token`, as `admit()` would have given it then."""
        return token

    def on_success(self, grant: Grant, result: Any = NO_RESULT, duration: float | None = None) -> None:
        """The call returned `result`; `is_failure` may see it as a failure or as nothing at all."""
        is_failure = self.config.is_failure
        if is_failure is not None and result is not NO_RESULT:
            try:
                failed = is_failure(None, result)
            except BaseException:
                self.on_ignored(grant)
                raise
            if failed is None:
                self.on_ignored(grant)
                return
            if failed:
                self.count_failure(grant, None, duration)
                return
        self.count_success(grant, duration)

    def on_failure(self, grant: Grant, exc: BaseException, duration: float | None = None) -> None:
        """The call raised `exc`, which is a failure, a success or nothing at all, as `config` and `classify` say."""
        books = self._books or self._open_books()
        if ordinary := exc.__class__ in books.ordinary and exc.__context__ is None:
            category = books.classify(exc).category
            failed: bool | None = None if category is PERMANENT or category is LOGIC else True
        else:
            try:
                failed = books.verdict(exc)
            except BaseException:
                self.on_ignored(grant)
                raise
        if failed:
            try:
                last = exc.__class__, str(exc)  # text, since an exception kept would keep its frames
            except Exception:
                last = exc.__class__, UNREADABLE
            now = self.clock.monotonic()
            state = books.state
            # `rules.fail` for a failure in a row that is not the last one: no lock, since no other thread runs between
            # the look and the count while there is a GIL.
            if (
                ordinary
                and grant == state.generation
                and state.failures < books.harmless
                and state.mark == self.successes + state.successes
                and now < state.forget_at
            ):
                state.failures += 1
                books.failures += 1
                books.permitted += 1
                state.forget_at = now + books.memory
                books.last = last
            else:
                self._count_failure(books, grant, last, now, duration, exc)
        elif failed is None:
            self.on_ignored(grant)
        else:
            self.count_success(grant, duration)

    def on_ignored(self, grant: Grant) -> None:
        """The call says nothing about the dependency: its place is free again, its outcome counts nowhere."""
        if grant == _FREE:
            return
        books = self._books or self._open_books()
        now = self.clock.monotonic()
        generation, place, _, adopted = _parts(grant)
        if books.shared is not None:
            books.shared.give_back(self, books, generation, place)
        with books.lock:
            books.permitted += adopted
            answer = rules.give_back(books.state, now, generation, place)
            books.ignored += answer is rules.COUNTED
            self._notice_held(books, books.state.mode, answer)

    def count_success(self, grant: Grant, duration: float | None = None) -> None:
        """The call succeeded, whatever its result; `duration` None: the time since its grant."""
        if grant == _FREE:
            return
        books = self._books or self._open_books()
        now = self.clock.monotonic()
        generation, place, started, adopted = _parts(grant)
        slow = books.is_slow(now - started if duration is None and started is not None else duration)
        state = books.state
        shared = books.shared
        told = None if shared is None else shared.succeed(self, books, generation, place, slow)
        with books.lock:
            books.permitted += adopted
            if told is None:
                mode = state.mode
                answer = rules.succeed(state, self.config, now, generation, place, slow, self.successes)
                news = self._notice_held(books, mode, answer)
            else:
                answer, news = told
                books.late_results += answer is rules.LATE
            if answer is not rules.LATE:
                books.successes += 1
                books.slow += slow
        if news is not None and shared is not None and told is None:
            news = shared.confirm(self, books, generation, news, books.last_error())
        if news is not None:
            self._tell(*news)

    def count_failure(self, grant: Grant, exc: BaseException | None = None, duration: float | None = None) -> None:
        """The call failed, whatever `exc` is; `duration` None: the time since its grant."""
        books = self._books or self._open_books()
        self._count_failure(books, grant, text_of(exc), self.clock.monotonic(), duration, exc)

    def _count_failure(
        self, books: Books, grant: Grant, last: tuple[type | None, str], now: float, duration: float | None,
        exc: BaseException | None,
    ) -> None:  # fmt: skip
        if grant == _FREE:
            return
        generation, place, started, adopted = _parts(grant)
        slow = books.is_slow(now - started if duration is None and started is not None else duration, exc)
        state = books.state
        shared = books.shared
        told = None if shared is None else shared.fail(self, books, generation, place, slow, books.line_of(last))
        with books.lock:
            books.permitted += adopted
            if told is None:
                mode = state.mode
                answer = rules.fail(state, self.config, now, generation, place, slow, self.successes)
            else:
                answer = told[0]
                books.late_results += answer is rules.LATE
            if answer is not rules.LATE:
                books.failures += 1
                books.slow += slow
                books.last = last
            news = self._notice_held(books, mode, answer) if told is None else told[1]
        if news is not None and shared is not None and told is None:
            news = shared.confirm(self, books, generation, news, books.line_of(last))
        if news is not None:
            self._tell(*news)


def text_of(error: BaseException | None) -> tuple[type | None, str]:
    """Type and message of an error. Calls user code: not under the lock."""
    try:
        return (None, "a failing result") if error is None else (error.__class__, str(error))
    except Exception:
        return error.__class__, UNREADABLE


def _parts(grant: Grant) -> tuple[int, int, float | None, int]:
    """Generation, place and start of a grant, and 1 when its call is not counted as permitted yet."""
    if isinstance(grant, int):
        return grant, rules.FREE, None, 1
    return *grant, 0
