"""Real servers for the tests that need one: started at most once per run, on free ports, ended with it.

The shared ones are shared: use keys and tables of your own, or clean up.
"""

import contextlib
import os
import signal
import threading

import pytest

from resilience.testing import Postgres, Valkey

# A shell starts what runs behind `&` with SIGINT ignored, and children inherit that: the tests interrupt some of them.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONUNBUFFERED", None)  # the tests' children write as those of most users do


@contextlib.contextmanager
def server(kind):
    try:
        made = kind()
    except ModuleNotFoundError as missing:
        print(f"skipping: {missing}")
        pytest.skip(str(missing))
    with made:
        yield made


@pytest.fixture
def own_valkey():
    """A server of the Redis protocol for one test, which may stop, kill or restart it."""
    with server(Valkey) as own:
        yield own


@pytest.fixture(scope="session")
def valkey_url():
    """The URL of the server that the tests share."""
    with server(Valkey) as shared:
        yield shared.url


@pytest.fixture(scope="session")
def postgres_dsn():
    """The URL of a PostgreSQL server for its superuser `postgres`; the role `guest` needs its password "secret"."""
    with server(Postgres) as shared:
        yield shared.dsn


@pytest.fixture
def own_postgres():
    """A PostgreSQL for one test, which may stop or restart it."""
    with server(Postgres) as own:
        yield own


@pytest.fixture
def new_threads():
    """`begun = new_threads()`, and later `begun()`: the names of the threads begun since then that still live.

    Threads of earlier tests may end in between; counting all of them would see that.
    """

    def since_now():
        before = set(threading.enumerate())
        return lambda: sorted(thread.name for thread in set(threading.enumerate()) - before)

    return since_now
