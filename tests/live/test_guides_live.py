"""The shell commands of the guides, run as a reader would; each block of `sh` is a script that checks itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "cron-job.md"


@pytest.fixture
def shell(home):
    folder = home.folder / "bin"
    folder.mkdir()
    (folder / "resilience").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m resilience_cli "$@"\n', encoding="utf-8")
    (folder / "resilience").chmod(0o755)
    environment = {**home.environment, "PATH": f"{folder}:{home.environment['PATH']}"}

    def run(script):
        return subprocess.run(
            ["sh", "-eu", "-c", script], cwd=home.work, env=environment, capture_output=True, text=True, timeout=110,
            check=False,
        )  # fmt: skip

    return run


def test_the_guide_to_cron_jobs_is_true(shell):
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    done = shell("\n".join(blocks))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OPEN" in done.stderr and "not started" in done.stderr
    assert re.search(r"^run 1, \d+\.\d+ s left$", done.stdout, re.M), done.stdout
    assert "backup would be refused" in done.stdout
