"""A path that leads to something that is no file: refused at once, and nothing there is touched."""

import os
import time

import pytest

from resilience import StoreUnavailable, open_store


@pytest.fixture
def odd(tmp_path):
    """A folder of traps."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("mine")
    (tmp_path / "trap-bell").symlink_to(tmp_path / "text")
    for name, target in (("loop", tmp_path / "loop"), ("zero", "/dev/zero"), ("null", "/dev/null")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "piped-bell")
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "text", "trap", "loop", "zero", "null", "pipe", "text/x", "pipe/x"])
def test_an_odd_place_is_unavailable_at_once(odd, name):
    began = time.monotonic()
    with open_store(f"file://{odd}/{name}") as store, pytest.raises(StoreUnavailable, match=name.partition("/")[0]):
        store.transact("key", lambda old, now: ({"n": 1}, None))
    assert time.monotonic() - began < 5.0
    assert (odd / "text").read_text() == "mine"


def test_a_bell_that_is_a_pipe_disturbs_nobody(odd):
    with open_store(f"file://{odd}/piped") as store:
        store.transact("key", lambda old, now: ({"n": 1}, None))
        assert store.read("key") == {"n": 1}
