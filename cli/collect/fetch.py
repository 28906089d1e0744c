"""One request over requests: a total deadline over connecting, headers and body, and a verdict on what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import requests

from resilience.core.classify import classify
from resilience.core.context import OperationContext
from resilience.core.errors import DeadlineExceeded

from .answer import Answer, Onward, of_error, of_status
from .content import CHUNK, content_of
from .inputs import host_of
from .journal import OutputError
from .session import Session

if TYPE_CHECKING:
    from .bodies import Bodies
    from .inputs import Item

CONDITIONAL = frozenset(("if-none-match", "if-modified-since"))  # a 304 is what they ask for
DRAINED = 1 << 16  # bytes of an unwanted body that are read so that its connection can be used again


class Fetcher:
    """The requests of one thread: `fetcher(item, seconds, onward)` -> `Answer`. Raises `OutputError` alone.

    A redirect is followed on the same host; one to another host is an answer with `onward`, for that host has a
    breaker and limits of its own. Cookies live as long as their item.
    """

    def __init__(self, session: Session, bodies: Bodies | None = None) -> None:
        self._session = session
        self._bodies = bodies

    def __call__(self, item: Item, limit: float, onward: Onward | None = None) -> Answer:
        try:
            with OperationContext("collect", limit, is_attempt=True):
                return self._follow(item, onward or Onward(self._first(item), item.host))
        except OutputError:
            raise
        except Exception as error:  # the verdict: whatever a library raises is the answer to this item
            return of_error(error, limit)

    def _first(self, item: Item) -> requests.PreparedRequest:
        return self._session.prepared(item, self._session.surroundings(item.url)[1])

    def _follow(self, item: Item, here: Onward) -> Answer:
        session, request, hops = self._session, here.request, here.hops
        if session.cookies:
            session.cookies.clear()  # those of this item travel with its request
        while True:
            settings = session.surroundings(str(request.url))[0]
            with session.send(request, allow_redirects=False, **settings) as response:
                following = response.next
                if following is None:
                    return self._answer(item, response)
                hops += 1
                if hops > session.max_redirects:
                    raise requests.TooManyRedirects(f"more than {session.max_redirects} redirects", response=response)
                there = _host_of(following)
                if there not in (here.host, None):
                    error = f"redirected to {there}"
                    return Answer(False, response.status_code, error, onward=Onward(following, str(there), hops))
            request = following

    def _answer(self, item: Item, response: requests.Response) -> Answer:
        status = response.status_code
        if not (200 <= status < 300 or (status == 304 and CONDITIONAL & {name.lower() for name in item.headers})):
            size = _drain(response)
            return of_status(status, response.reason or "", classify(requests.HTTPError(response=response)), size)
        content = content_of(response)
        if self._bodies is None:
            return Answer(True, status, size=sum(map(len, content)))
        size, path = self._bodies.keep(item, content)
        return Answer(True, status, size=size, path=path)


def _host_of(request: requests.PreparedRequest) -> str | None:
    """host:port, None where there is none to be asked: sending will say why."""
    try:
        return host_of(str(request.url))
    except ValueError:
        return None


def _drain(response: requests.Response) -> int:
    """Reads a short body to its end, so that its connection can be used again; any other is left, and ends it.

    The status has said it all: trouble with the rest is none.
    """
    length = response.headers.get("Content-Length", "0")
    if response.status_code < 200 or not length.isdigit() or int(length) > DRAINED:
        return 0
    size = 0
    try:
        for chunk in response.iter_content(CHUNK):
            size += len(chunk)
            if size >= DRAINED:
                break
    except (requests.RequestException, DeadlineExceeded):
        pass
    return size


def fetcher_factory(bodies: Bodies | None) -> Callable[[], Fetcher]:
    """What gives each thread a fetcher of its own."""
    return lambda: Fetcher(Session(), bodies)
