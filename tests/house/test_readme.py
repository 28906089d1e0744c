"""README and guides are true: their examples run, its tables agree with the code, and its two blocks are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = [
    pytest.param(example, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, example in enumerate(
        re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)
    )
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_python_example_runs(example, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(example, encoding="utf-8")
    run = [sys.executable, "-W", "error", script]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_each_of_the_two_headings_has_one_block_of_commands(heading):
    section = re.search(rf"^## {heading}$(.*?)^## ", README, re.M | re.S).group(1)
    assert len(re.findall(r"^```sh\n", section, re.M)) == 1


def test_the_table_of_exit_codes_is_that_of_the_command():
    from resilience_cli import exits

    told = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    assert told == {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}


def test_every_verb_is_in_the_readme():
    from resilience_cli.main import VERBS

    for verb in VERBS:
        assert f"`resilience {verb}" in README or f"resilience {verb} " in README
