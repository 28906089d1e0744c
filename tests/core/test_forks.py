"""Forks take the locks of all rooms in one order, whatever else takes one of them first."""

import importlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from resilience.core import forks

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


FORKING = """
import os, sys, threading
from resilience.core import forks                      # its hooks are registered before logging's
from resilience.workers import process_start
from resilience.strategies import breaker_books

def fork():
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    done.append(1)

def start():
    with process_start._starting:
        fork()

done = []
threads = [threading.Thread(target=lambda: [work() for _ in range(50)], daemon=True) for work in (start, fork) * 2]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
print(len(done), flush=True)
os._exit(0)
"""


def test_who_starts_a_process_and_who_forks_never_wait_for_each_other():
    run = [sys.executable, "-c", FORKING]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "200\n", done.stderr


def test_no_child_is_born_while_another_thread_imports_a_module_of_the_toolkit(tmp_path, monkeypatch):
    name = "resilience_slow_to_import"
    (tmp_path / f"{name}.py").write_text("import sys\nsys.modules['its_gates'].pass_through()\n")
    begun, may_end = threading.Event(), threading.Event()

    class Gates:
        def pass_through(self):
            begun.set()
            may_end.wait(30)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "its_gates", Gates())
    importing = threading.Thread(target=importlib.import_module, args=(name,))
    importing.start()
    assert begun.wait(30)
    ending = threading.Timer(0.1, may_end.set)
    ending.start()
    if (child := os.fork()) == 0:
        signal.alarm(10)
        importlib.import_module(name)
        os._exit(0)
    may_end.set()
    importing.join(30)
    assert os.waitpid(child, 0)[1] == 0
    del sys.modules[name]


def test_a_fork_does_not_wait_for_ever_for_an_import(monkeypatch):
    monkeypatch.setattr(forks, "_others_import", lambda: True)
    monkeypatch.setattr(forks, "IMPORT_PATIENCE", 0.01)
    if (child := os.fork()) == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_taken_is_given_back_in_parent_and_child_in_the_order_of_the_rooms(monkeypatch):
    told = []
    monkeypatch.setattr(forks, "_held", {})
    for order in (2, 0, 1):
        forks.held_across_forks(
            order,
            lambda order=order: told.append(f"take {order}"),
            lambda order=order: told.append(f"give {order}"),
            lambda order=order: told.append(f"child {order}"),
        )
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, "; ".join(told).encode())
        os._exit(0)
    os.waitpid(child, 0)
    seen = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert seen == "take 0; take 1; take 2; child 2; child 1; child 0"
    assert told == ["take 0", "take 1", "take 2", "give 2", "give 1", "give 0"]
