"""A real RLIMIT_NOFILE: open files narrow a fan-out, none start at 95 %, closing them lets it end."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, resource, threading, time
from resilience import Bulkhead, ErrorRecoveryManager, fan_out

resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
manager = ErrorRecoveryManager()
bulkhead = Bulkhead("files", 8)
manager.register_bulkhead("files", bulkhead)
heard = []
manager.events.subscribe(heard.append, kinds=("degraded", "restored"))
held = []
free = os.listdir("/proc/self/fd")

def hold(until):
    while len(os.listdir("/proc/self/fd")) - 1 < until:
        held.append(os.open("/dev/null", os.O_RDONLY))

def release(until):
    while len(os.listdir("/proc/self/fd")) - 1 > until:
        os.close(held.pop())

lock, running, peaks, phase = threading.Lock(), 0, {}, "wide"

def work(number):
    global running
    with lock:
        running += 1
        peaks[phase] = max(peaks.get(phase, 0), running)
    time.sleep(0.02)
    with lock:
        running -= 1
    return number

def steer():
    global phase
    seen = []
    def until(condition):
        end = time.monotonic() + 25
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        seen.append(bulkhead.max_concurrent)
    time.sleep(0.3)
    hold(85)
    until(lambda: bulkhead.max_concurrent == 1 and running <= 1)
    time.sleep(0.1)
    phase = "narrow"
    time.sleep(0.5)
    hold(97)
    until(lambda: bulkhead.max_concurrent == 0 and running == 0)
    time.sleep(0.1)
    phase = "stopped"
    time.sleep(0.5)
    phase = "again"
    release(30)
    until(lambda: bulkhead.max_concurrent == 8)
    stop.set()
    return seen

stop, answer = threading.Event(), []
thread = threading.Thread(target=lambda: answer.append(steer()))
thread.start()

def numbers():
    number = 0
    while not stop.is_set():
        yield number
        number += 1

result = fan_out(work, numbers(), max_workers=8, manager=manager)
thread.join()
manager.events.flush(5)
print(json.dumps({"seen": answer[0], "peaks": peaks, "done": len(result.values), "read": len(result.items),
                  "degraded": result.degraded,
                  "events": sorted({(event.kind, event.name) for event in heard})}))
manager.close()
"""


@pytest.mark.slow
def test_open_files_narrow_stop_and_release_a_fan_out(tmp_path):
    script = tmp_path / "files.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["seen"] == [1, 0, 8]
    assert seen["peaks"]["wide"] > 2
    assert seen["peaks"]["narrow"] == 1
    assert "stopped" not in seen["peaks"]
    assert seen["done"] == seen["read"] > 0
    assert seen["degraded"].startswith("resource pressure (fds at ")
    wanted = [["degraded", "fan_out"], ["degraded", "resources"], ["restored", "fan_out"], ["restored", "resources"]]
    assert seen["events"] == wanted
