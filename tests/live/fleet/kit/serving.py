"""What the scripts of workers share: what they were told at the start, and answering line by line (`fleet.Worker`)."""

import json
import sys
import time

told = json.loads(sys.argv[1])


def losses(link):
    """A list that grows each time this process takes its store for away."""
    lost, lose = [], link.clerk._lose
    link.clerk._lose = lambda *reason, **more: (lost.append(1), lose(*reason, **more))
    return lost


def when(condition, patience=60.0):
    """The moment at which the condition was first seen to hold."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "not seen in time"
        time.sleep(0.001)
    return time.monotonic()


def serve(names):
    """Says that it is ready, and evaluates among `names` what comes, a line each."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        try:
            answer = eval(line, names)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
