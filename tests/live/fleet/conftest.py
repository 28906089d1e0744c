"""For tests with several processes on one store: a store of each kind, and workers that end with the test."""

import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kit"))


@pytest.fixture(params=["file", "redis", "postgres"])
def url(request, tmp_path):
    """The URL of a store of each kind."""
    if request.param == "file":
        return f"file://{tmp_path}/state"
    return request.getfixturevalue({"redis": "valkey_url", "postgres": "postgres_dsn"}[request.param])


@pytest.fixture
def name():
    return uuid.uuid4().hex


@pytest.fixture
def workers():
    """Makes workers of a kind on a store, ready; they end with the test."""
    from fleet import Crowd, Worker

    made = Crowd()

    def make(count, kind, url, name, **told):
        new = Crowd(Worker(kind, url=url, name=name, **told) for _ in range(count))
        made.extend(new)
        assert [worker.answer() for worker in new] == ["ready"] * count
        return new

    yield make
    for worker in made:
        worker.close()
