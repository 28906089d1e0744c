"""The demo runs as it is shown: no network, real numbers, exit code 0."""

import os
import re
import subprocess
import sys


def test_the_demo_fetches_what_can_be_fetched_and_resumes_the_rest(tmp_path):
    behind_a_proxy = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    run = subprocess.run(
        [sys.executable, "-m", "resilience_cli", "demo"], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env=behind_a_proxy,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    plain, first, second = re.split(r"\[[23]/3\]", run.stdout)
    fetched = int(re.search(r"(\d+)/60 in", plain).group(1))
    assert fetched < 50
    rows = {line.split()[0]: line.split()[1:4] for line in first.splitlines() if ".local" in line}
    assert set(rows) == {f"{name}.local" for name in ("a", "b", "flaky", "limited", "drip", "dead")}
    assert rows["dead.local"] == ["0", "10", "5"]
    assert rows["a.local"] == rows["drip.local"] == ["10", "0", "10"]
    assert all(row[0] == "10" for name, row in rows.items() if name != "dead.local")
    assert "50/60 ok" in first
    assert "exit code 75" in first
    assert "as told (Retry-After)" in first
    assert "open -> half_open -> closed" in second
    assert "50 skipped" in second
    assert "10/10 ok" in second
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in run.stderr
