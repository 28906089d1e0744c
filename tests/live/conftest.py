"""Scripts with an agent, for the tests that look at a running process."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import resilience_cli.main

PATIENCE = 60.0  # real seconds for a script to start on a busy machine


class Home:
    """A runtime directory of its own: the agents in it are those of the test."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.work = self.folder / "work"  # not the folder itself: a directory `resilience` there would be imported
        self.work.mkdir()
        self.processes = []

    @property
    def environment(self):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RESILIENCE_", "XDG_"))}
        return {**kept, "XDG_RUNTIME_DIR": str(self.folder), "HOME": str(self.folder)}

    @property
    def agents(self):
        return self.folder / "resilience"

    def start(self, script, *args, agent=True):
        """A process of `script` that has said "ready"."""
        environment = {**self.environment, **({"RESILIENCE_AGENT": "1"} if agent else {})}
        process = subprocess.Popen(
            [sys.executable, "-c", script, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=PATIENCE)
        return process

    def run(self, *words):
        """The command line with these words, in this process: saves half a second each."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = resilience_cli.main.run([str(word) for word in words])
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    def top(self, process):
        done = self.run("top", process.pid, "--once", "--json", "--timeout", "30s")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def home(monkeypatch):
    made = Home(tempfile.mkdtemp(prefix="agents-", dir="/tmp"))  # short: a socket's path has little room
    for name in [name for name in os.environ if name.startswith(("RESILIENCE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made.folder))
    monkeypatch.setenv("HOME", str(made.folder))
    monkeypatch.setenv("TMPDIR", str(made.folder))  # else agents of other people's tests may be seen
    monkeypatch.chdir(made.work)
    try:
        yield made
    finally:
        made.close()
