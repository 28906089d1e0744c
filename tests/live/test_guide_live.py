"""The commands of the guide "diagnose a hang", run as a reader would, in one shell."""

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "diagnose-a-hang.md"
PAUSE = "sleep 2"
UNTIL_STUCK = "until resilience top $JOB --json --timeout 30s | grep -q '\"where\": .*in fetch'; do sleep 0.1; done"


def test_the_commands_of_the_guide_run_and_show_where_the_job_stands(home):
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    script = "\n".join(["set -e", *blocks])
    assert PAUSE in script
    script = script.replace(PAUSE, UNTIL_STUCK)  # a busy machine takes longer
    folder = home.folder / "bin"
    folder.mkdir()
    for name, words in (("python", ""), ("resilience", " -m resilience_cli")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {**home.environment, "PATH": f"{folder}:{home.environment['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", script], cwd=home.work, env=environment, capture_output=True, text=True, timeout=110,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^market_data +market_data-1 .* running +\S*job.py:8 in fetch$", done.stdout, re.M), done.stdout
    assert re.search(r"^market_data \(market_data-1\): \S+ old, \S+ left, running", done.stdout, re.M)
    assert "nothing found" in done.stdout  # nine minutes are left to it: a setting, no fault
