"""The demonstration of the README shows what it says, and its lines for the drivers run."""

import re
import subprocess
import sys
from pathlib import Path

import psycopg2

from resilience.testing import FaultServer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_demonstration_shows_what_the_readme_says(valkey_url):
    run = [sys.executable, "-W", "error", ROOT / "examples" / "lost_replies.py", valkey_url]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = re.search(r"^\$ python examples/lost_replies.py\n(.*?)^```$", README, re.M | re.S).group(1)

    def without_version(text):
        return re.sub(r"redis-py [\d.]+, its defaults *", "redis-py ", text)

    assert without_version(done.stdout) == without_version(told)


def test_the_lines_for_the_drivers_run(valkey_url, postgres_dsn):
    (code,) = re.findall(r"^```py\n(.*?)^```$", README, re.M | re.S)
    with psycopg2.connect(postgres_dsn) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id int); INSERT INTO orders VALUES (7)")
    connection.close()
    with FaultServer() as server:
        for told, real in (
            ("redis://localhost:6379/0", valkey_url), ("postgresql://localhost/shop", postgres_dsn),
            ("https://example.com/orders", f"{server.url}/echo"),
        ):  # fmt: skip
            assert told in code
            code = code.replace(told, real)
        ran = {}
        exec(compile(code, "README.md", "exec"), ran)
    assert ran["response"].json()["body"] == '{"id": 7}'
    with psycopg2.connect(postgres_dsn) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE orders")
    connection.close()
