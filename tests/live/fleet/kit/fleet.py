"""Several processes on one store, and a referee who trusts none of them."""

import json
import subprocess
import sys
from pathlib import Path

PATIENCE = 30.0
KIT = Path(__file__).parent


class Worker:
    """A process of the script `{kind}_worker.py`: evaluates there what it is told."""

    def __init__(self, kind, **told):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(KIT / f"{kind}_worker.py"), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def do(self, expression):
        self.tell(expression)
        return self.answer()

    @property
    def state(self):
        return self.do("str(breaker.state)")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Crowd(list):
    """Workers that are told all at once."""

    def do(self, expression):
        for worker in self:
            worker.tell(expression)
        return [worker.answer() for worker in self]

    def lost(self):
        """How many times one of them took its store for away since this was asked last."""
        return sum(self.do("[len(lost), lost.clear()][0]"))


def undisturbed(run, most=4):
    """What `run()` gives, once no process took its store for away meanwhile; `run()` gives that count as well.

    On a machine that is too busy a store does not answer for a second, and local state decides as it should.
    """
    for _ in range(most):
        seen, lost = run()
        if not lost:
            return seen
        print(f"{lost} times a process had no answer from its store for a second: that run says nothing")
    raise AssertionError(f"none of {most} runs was undisturbed")


class Referee:
    """Reads the log that visits write: how many were under way at once, and which began together."""

    def __init__(self, path):
        self.path = path

    def lines(self):
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")  # what follows it is being written
        split = [line.split() for line in whole.splitlines()]
        return sorted((int(at) / 1e9, int(pid), what) for at, pid, what in split)

    def most_at_once(self, lines=None):
        under_way = most = 0
        for _, _, what in self.lines() if lines is None else lines:
            under_way += 1 if what == "begun" else -1
            most = max(most, under_way)
        return most

    def phases(self, gap, lines=None):
        """How many visits began in each phase: with less than `gap` seconds between one and the next."""
        counts, last = [], float("-inf")
        for at, _, what in self.lines() if lines is None else lines:
            if what == "begun":
                if at - last < gap:
                    counts[-1] += 1
                else:
                    counts.append(1)
                last = at
        return counts
