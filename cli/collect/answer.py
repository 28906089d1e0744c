"""What came of one attempt, in the terms the scheduler decides by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilience.core.classify import classify
from resilience.core.errors import ErrorCategory

if TYPE_CHECKING:
    from requests import PreparedRequest

    from resilience.core.classify import Classification

ASKED_TO_WAIT = (429, 503)  # RFC 6585, 4 and RFC 9110, 15.6.4: nothing was done, come back later
OWN_FAILURES = (408, 429)  # 4xx that are the host's trouble and not the request's
NO_ANSWER = "no complete answer within"  # how the error of an attempt begins that ran out of time


@dataclass(frozen=True, slots=True)
class Onward:
    """Where an item is to be asked for: the request, the host:port it goes to, how many redirects led there."""

    request: PreparedRequest
    host: str
    hops: int = 0


@dataclass(slots=True)
class Answer:
    """The outcome of one attempt.

    `blames_host`: True where the host failed, False where it answered (if only "no such thing"), None where this
    attempt says nothing about it. `sent` is False only where the request certainly never left. `onward` is no end: a
    redirect to another host.
    """

    ok: bool
    status: int | None = None
    error: str = ""
    category: str = ""
    is_retryable: bool = False
    blames_host: bool | None = False
    sent: bool = True
    retry_after: float | None = None
    is_exhausted: bool = False  # this machine has no room for more
    size: int = 0
    path: str | None = None
    onward: Onward | None = None

    @property
    def may_repeat(self) -> bool:
        """Whether even a request that is not idempotent may be made again."""
        return not self.sent or self.status in ASKED_TO_WAIT


def of_error(error: Exception, limit: float) -> Answer:
    """The answer that an exception is; `limit` is the time the attempt had, in seconds."""
    verdict = classify(error)
    category = verdict.category
    exhausted = category is ErrorCategory.RESOURCE
    own_fault = category in (ErrorCategory.PERMANENT, ErrorCategory.LOGIC)
    return Answer(
        False,
        error=cause_of(error, limit),
        category=str(category),
        is_retryable=verdict.retryable,
        blames_host=None if exhausted or own_fault else True,
        sent=verdict.outcome != "not_sent",
        retry_after=verdict.retry_after,
        is_exhausted=exhausted,
    )


def of_status(status: int, reason: str, verdict: Classification, size: int) -> Answer:
    """The answer that a status other than success is."""
    own = status >= 500 or status in OWN_FAILURES
    leads_nowhere = 300 <= status < 400  # a choice, an unasked-for 304, no Location: the same the next time
    text = f"{status} {reason}".strip()
    waits = verdict.retry_after if status in ASKED_TO_WAIT else None
    return Answer(
        False,
        status,
        text,
        "permanent" if leads_nowhere else str(verdict.category),
        verdict.retryable and not leads_nowhere,
        None if waits is not None else own,
        retry_after=waits,
        size=size,
    )


def cause_of(error: BaseException, limit: float) -> str:
    """A short text that groups errors of one cause: no addresses of objects, no ports of ours, no URLs."""
    kind = type(error).__name__
    if kind in ("DeadlineExceeded", "OutcomeUnknown", "Timeout", "ReadTimeout", "ConnectTimeout"):
        return f"{NO_ANSWER} {limit:g} s"
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and len(seen) < 12 and inner not in seen:
        seen.append(inner)
        inner = _inside(inner)
    names = {type(found).__name__ for found in seen}
    return ("proxy: " if "ProxyError" in names else "") + _innermost(seen[-1], names)


def _innermost(last: BaseException, names: set[str]) -> str:
    if isinstance(last, ConnectionRefusedError):
        return "connection refused"
    if isinstance(last, ConnectionResetError) or "RemoteDisconnected" in names:
        return "connection closed without an answer" if "RemoteDisconnected" in names else "connection reset"
    if names & {"NameResolutionError", "gaierror"}:
        return "host name not found"
    if names & {"IncompleteRead", "ChunkedEncodingError"}:
        return "answer cut short"
    if type(last).__name__ == "BadStatusLine":
        return f"no HTTP: {str(last)[:60]!r}"
    text = getattr(last, "strerror", None) or getattr(last, "reason", None) or str(last) or type(last).__name__
    if type(last).__name__ == "SSLCertVerificationError":
        text = "certificate: " + str(getattr(last, "verify_message", text))
    return " ".join(str(text).split())[:200]


def _inside(error: BaseException) -> BaseException | None:
    """What an error of requests or urllib3 wraps: `reason`, the first argument that is an error, its cause."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return reason
    for argument in error.args:
        if isinstance(argument, BaseException):
            return argument
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)
