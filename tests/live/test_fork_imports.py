"""Forks while a thread of the toolkit imports what it needs: the child can import it, too."""

import subprocess
import sys

import pytest

CODE = """
import importlib.machinery as machinery, os, signal, sys, threading, time
import resilience

class Slow(machinery.SourceFileLoader):
    def exec_module(self, module):
        inside.set()
        time.sleep(0.3)
        super().exec_module(module)

class Finder:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[1]:
            spec = machinery.PathFinder.find_spec(name, path, target)
            spec.loader = Slow(name, spec.origin)
            return spec

inside = threading.Event()
sys.meta_path.insert(0, Finder())
thing = eval(sys.argv[2])
use = eval(sys.argv[4])
eval(sys.argv[3])
assert inside.wait(30)
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    use()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize(
    ("module", "thing", "begin", "use"),
    [
        ("psutil", "resilience.PerformanceMonitor()", "thing.start()", "thing.report"),
        (
            "ctypes",
            "resilience.open_store('file://{folder}/state')",
            "threading.Thread(target=thing.subscribe, args=('', print)).start()",
            "lambda: thing.subscribe('', print)",
        ),
    ],
)
def test_a_child_born_in_the_middle_of_an_import_can_import_the_same(tmp_path, module, thing, begin, use):
    words = [sys.executable, "-W", "ignore", "-c", CODE, module, thing.format(folder=tmp_path), begin, use]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout.split() == ["0"], done.stderr
