"""HTTP: statuses, and the errors of http.client, urllib, urllib3 and requests."""

from __future__ import annotations

from .retry_after import retry_after
from .rows import (
    ANSWERED,
    BUG,
    BUG_ANSWERED,
    BUG_NOT_SENT,
    NO_ROOM,
    NOT_SENT,
    PARTIAL,
    REFUSED,
    UNKNOWN,
    UNSENDABLE,
    R,
    message,
    table,
    verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..classification import Classification
    from .rows import Row, Table

# RFC 9110 and RFC 6585; 520-524 are a gateway's words for an origin that fails. A 5xx that nobody has heard of counts
# as 500 (RFC 9110, 15), those below do not pass by themselves; nor do other 4xx: the request is at fault.
_RETRYABLE_4XX = frozenset((408, 425, 429))
_FINAL_5XX = frozenset((501, 505, 506, 508, 510, 511, 525, 526))


def by_status(status: int, headers: Any = None) -> Classification | None:
    """The verdict on an HTTP status and its Retry-After; None for one that is no failure."""
    if not 400 <= status < 600:
        return None
    row: Row = REFUSED
    if status == 507:
        row = (R, False, "answered")
    elif status in _RETRYABLE_4XX or (status >= 500 and status not in _FINAL_5XX):
        row = ANSWERED
    wait = retry_after(headers) if row[1] and headers is not None else None
    return verdict(row, f"http:{int(status)}", wait)


def by_response(error: Any) -> Classification | None:
    """The verdict on an error that carries a response with `status_code`; such a response may be falsy."""
    response = getattr(error, "response", None)
    status = None if response is None else getattr(response, "status_code", None)
    if not isinstance(status, int) or isinstance(status, bool):
        return None
    return by_status(status, getattr(response, "headers", None))


def _urllib_status(error: Any) -> Classification | None:
    return by_status(error.code, error.headers)


def _reason(error: Any) -> BaseException | None:
    return error.reason if isinstance(error.reason, BaseException) else None


def _wrapped(error: Any) -> BaseException | None:
    """What requests and urllib3 wrap is their first argument, or the last of two."""
    return next((value for value in reversed(error.args) if isinstance(value, BaseException)), None)


def _read_timeout(error: Any) -> Classification | None:
    if error.url is None:  # so urllib3 says that the head of the answer had come
        return verdict(PARTIAL, "urllib3:ReadTimeoutError:body")
    return None


def _protocol(error: Any) -> Classification | BaseException | None:
    if message(error).startswith(("Connection broken", "Response ended prematurely", "Response may not contain")):
        return verdict(PARTIAL, "urllib3:ProtocolError:body")
    return _wrapped(error)


def _tunnel(error: Any) -> Classification | BaseException | None:
    """A proxy that answers CONNECT with a status refuses us, or has itself nobody to turn to."""
    _, said, status = str(error).partition("Tunnel connection failed: ")
    if said and status[:3].isdigit():
        answered = by_status(int(status[:3]))
        if answered is not None:
            return verdict((answered.category, answered.retryable, "not_sent"), f"proxy:{status[:3]}")
    return _wrapped(error)


def _too_many(error: Any) -> Classification | None:
    """urllib3's own retries gave up: "too many 503 error responses", or redirects."""
    text = message(error)
    if "redirect" in text:
        return verdict(REFUSED, "urllib3:ResponseError:redirects")
    status = next((int(word) for word in text.split() if word.isdigit()), 0)
    return by_status(status)


HTTP_CLIENT: dict[str, Row] = {
    "RemoteDisconnected": UNKNOWN,
    "IncompleteRead": PARTIAL,
    "BadStatusLine": PARTIAL,
    "LineTooLong": (*REFUSED[:2], "partial"),
    "UnknownProtocol": REFUSED,
    "UnknownTransferEncoding": REFUSED,
    "UnimplementedFileMode": REFUSED,
    "InvalidURL": UNSENDABLE,
    "NotConnected": NOT_SENT,
    "ImproperConnectionState": BUG,
    "HTTPException": PARTIAL,
}
URLLIB3: dict[str, Row] = {
    "NewConnectionError": NOT_SENT,
    "NameResolutionError": NOT_SENT,
    "ConnectTimeoutError": NOT_SENT,
    "TimeoutError": UNKNOWN,
    "TimeoutStateError": BUG,
    "IncompleteRead": PARTIAL,
    "InvalidChunkLength": PARTIAL,
    "DecodeError": BUG_ANSWERED,
    "EmptyPoolError": NO_ROOM,
    "FullPoolError": NO_ROOM,
    "ClosedPoolError": BUG_NOT_SENT,
    "LocationValueError": UNSENDABLE,
    "InvalidHeader": PARTIAL,
    "HeaderParsingError": PARTIAL,
    "ResponseNotChunked": BUG_ANSWERED,
    "BodyNotHttplibCompatible": BUG_ANSWERED,
    "UnrewindableBodyError": UNSENDABLE,
    "ProxySchemeUnknown": UNSENDABLE,
    "ProxySchemeUnsupported": UNSENDABLE,
    "HTTPError": UNKNOWN,
}
REQUESTS: dict[str, Row] = {
    "ConnectTimeout": NOT_SENT,
    "ReadTimeout": UNKNOWN,
    "Timeout": UNKNOWN,
    "ChunkedEncodingError": PARTIAL,
    "ContentDecodingError": BUG_ANSWERED,
    "TooManyRedirects": REFUSED,
    "MissingSchema": UNSENDABLE,
    "InvalidSchema": UNSENDABLE,
    "InvalidURL": UNSENDABLE,
    "URLRequired": UNSENDABLE,
    "InvalidHeader": UNSENDABLE,
    "InvalidJSONError": BUG_NOT_SENT,
    "JSONDecodeError": BUG_ANSWERED,
    "StreamConsumedError": BUG,
    "UnrewindableBodyError": UNSENDABLE,
}
TABLE: Table = {
    **table("http.client", "http.client", HTTP_CLIENT),
    **table("urllib.error", "urllib", {"HTTPError": UNKNOWN}, _urllib_status),
    **table("urllib.error", "urllib", {"URLError": UNSENDABLE}, _reason),  # without an exception: a URL of no use
    **table("urllib.error", "urllib", {"ContentTooShortError": PARTIAL}),
    **table("urllib3.exceptions", "urllib3", URLLIB3),
    **table("urllib3.exceptions", "urllib3", {"MaxRetryError": UNKNOWN}, _reason),
    **table("urllib3.exceptions", "urllib3", {"ReadTimeoutError": UNKNOWN}, _read_timeout),
    **table("urllib3.exceptions", "urllib3", {"ProtocolError": UNKNOWN}, _protocol),
    **table("urllib3.exceptions", "urllib3", {"ProxyError": NOT_SENT}, _tunnel),
    **table("urllib3.exceptions", "urllib3", {"SSLError": UNSENDABLE}, _wrapped),
    **table("urllib3.exceptions", "urllib3", {"ResponseError": ANSWERED}, _too_many),
    **table("urllib3.util.ssl_match_hostname", "urllib3", {"CertificateError": UNSENDABLE}),
    **table("requests.exceptions", "requests", REQUESTS),
    **table("requests.exceptions", "requests", {"HTTPError": UNKNOWN, "RequestException": UNKNOWN}, by_response),
    **table("requests.exceptions", "requests", {"ConnectionError": UNKNOWN}, _wrapped),
    **table("requests.exceptions", "requests", {"SSLError": UNSENDABLE}, _wrapped),
    **table("requests.exceptions", "requests", {"RetryError": ANSWERED}, _wrapped),
    **table("requests.exceptions", "requests", {"ProxyError": NOT_SENT}, _tunnel),
}
