"""Looks at the stacks of other threads: whole, and with no garbage collection in the middle where that is fatal."""

import gc
import sys
import threading

import pytest

from resilience.core import stacks
from resilience.core.stacks import stacks_of, with_frames
from resilience.testing import Gate


def test_the_stack_of_a_thread_names_where_it_waits():
    gate = Gate()
    thread = threading.Thread(target=gate)
    thread.start()
    try:
        assert gate.arrived()
        seen = stacks_of([thread.ident])
        assert list(seen) == [thread.ident]
        assert __file__ in seen[thread.ident] or "doubles.py" in seen[thread.ident]
    finally:
        gate.open()
        thread.join()
    assert stacks_of([thread.ident]) == {}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on a collection waits for the next bytecode")
def test_no_collection_falls_into_a_look():
    assert with_frames(lambda frames: gc.isenabled()) is False
    assert gc.isenabled()


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_is_afterwards_as_it_was_also_where_the_look_fails(monkeypatch, was_enabled):
    monkeypatch.setattr(stacks, "_collector_is_risky", True)
    if not was_enabled:
        gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            with_frames(lambda frames: 1 // 0)
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()
