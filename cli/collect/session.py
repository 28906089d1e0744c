"""A session of requests for one thread: total deadlines, and what costs time looked up once instead of per request."""

from __future__ import annotations

import functools
import os
import ssl
import threading
from typing import TYPE_CHECKING, Any

import requests
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_netrc_auth
from urllib3.util.ssl_ import create_urllib3_context

from resilience import __version__
from resilience.integrations.requests import DeadlineAdapter

if TYPE_CHECKING:
    from .inputs import Item

AGENT = f"resilience-collect/{__version__}"
HOSTS_KEPT = 10  # hosts that a thread keeps a connection to
_loading = threading.Lock()


class Adapter(DeadlineAdapter):
    """Total deadlines, and certificates read once: requests reads the bundle for each connection (35 ms of CPU)."""

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        """What a pool is made with: the shared TLS context in the place of a bundle to be read."""
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        if verify and host["scheme"] == "https":
            pool.pop("ca_certs", None)
            pool.pop("ca_cert_dir", None)
            with _loading:
                pool["ssl_context"] = _context(DEFAULT_CA_BUNDLE_PATH if verify is True else os.fspath(verify))
        return host, pool

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Checks that the bundle is there, and leaves it to the context."""
        super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]  # its stub has none
        conn.ca_certs = conn.ca_cert_dir = None


@functools.lru_cache
def _context(place: str) -> ssl.SSLContext:
    context = create_urllib3_context()
    context.verify_mode = ssl.CERT_REQUIRED
    if os.path.isdir(place):
        context.load_verify_locations(capath=place)
    else:
        context.load_verify_locations(cafile=place)
    return context


class Session(requests.Session):
    """A session for one thread that asks the environment once per host, not once per request.

    Proxies, certificates and the passwords of ~/.netrc are what requests itself would find.
    """

    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = AGENT
        for scheme in ("http://", "https://"):
            self.mount(scheme, Adapter(pool_connections=HOSTS_KEPT, pool_maxsize=1))
        self._found: dict[str, tuple[dict[str, Any], Any]] = {}

    def surroundings(self, url: str) -> tuple[dict[str, Any], Any]:
        """What the environment says about the host of `url`: settings of `send`, and (user, password) or None."""
        scheme, _, rest = url.partition("://")
        place = f"{scheme}://{rest.partition('/')[0]}"
        found = self._found.get(place)
        if found is None:
            self.trust_env = True
            try:
                settings = dict(self.merge_environment_settings(url, {}, True, None, None))
            finally:
                self.trust_env = False
            found = self._found[place] = settings, get_netrc_auth(url)
        return found

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        """The proxies of a redirect: those of where it leads to."""
        url = prepared_request.url
        found = self.surroundings(url)[0]["proxies"] if url else proxies
        return super().rebuild_proxies(prepared_request, found)  # type: ignore[no-untyped-call]  # its stub has none

    def prepared(self, item: Item, auth: Any) -> requests.PreparedRequest:
        """The request of an item; the merging of `Session.prepare_request` without its cost (0.1 ms)."""
        headers = CaseInsensitiveDict({**self.headers, **item.headers}) if item.headers else self.headers
        request = requests.PreparedRequest()
        request.prepare(
            item.method, item.url, headers=headers, data=item.body, auth=auth, cookies=self.cookies, hooks={}
        )
        return request
