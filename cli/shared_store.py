"""The store of a verb: opened from the flag, RESILIENCE_STORE or the state directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .lookup import store_url

if TYPE_CHECKING:
    from resilience.stores.port import Store

HELP = "file:///path, redis://..., postgresql://...; else RESILIENCE_STORE, else the state directory."


def opened(given: str | None) -> Store:
    """The store, made where it is a file that is missing. A URL that names none is a usage error."""
    from resilience.core.errors import ConfigError
    from resilience.stores.opening import open_store

    url = store_url(given, make=True)
    assert url is not None
    try:
        return open_store(url)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
