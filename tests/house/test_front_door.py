"""What `import resilience` lists, what it costs, and what the packages contain."""

import configparser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import resilience

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"requests", "redis", "psycopg2", "psutil", "yaml", "click", "logging.config", "logging", "typing",
         "dataclasses", "concurrent.futures", "asyncio", "sqlite3"}  # fmt: skip


def test_the_list_of_names_and_their_homes_agree():
    at_home = sorted(name for names in resilience._HOME.values() for name in names)
    assert sorted(resilience.__all__) == at_home


@pytest.mark.parametrize("name", resilience.__all__)
def test_every_public_name_loads_and_says_what_it_gives(name):
    value = getattr(resilience, name)
    assert value.__doc__, f"{name} has no docstring"


def test_the_version_is_told_and_an_unknown_name_is_an_attribute_error():
    assert resilience.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = resilience.no_such_name


def test_the_errors_are_importable_from_their_public_module():
    errors = importlib.import_module("resilience.errors")
    for name in errors.__all__:
        assert getattr(errors, name) is getattr(resilience, name)


def loaded_after(statement):
    code = f"import sys; before = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return set(done.stdout.split())


def test_importing_loads_nothing_but_itself():
    assert loaded_after("import resilience") <= {"resilience"}


@pytest.mark.parametrize("name", ["CircuitBreaker", "RetryPolicy", "Pipeline", "deadline", "Timeout"])
def test_the_parts_on_the_call_path_load_no_third_party_library(name):
    loaded = loaded_after(f"from resilience import {name}")
    libraries = {module.split(".")[0] for module in loaded}
    assert not libraries & {"requests", "redis", "psycopg2", "psutil", "yaml", "click"}
    assert "logging.config" not in loaded


def packages_on_disk():
    return {
        ".".join((package, *path.parent.relative_to(ROOT / folder).parts))
        for package, folder in (("resilience", "resilience"), ("resilience_cli", "cli"))
        for path in (ROOT / folder).rglob("__init__.py")
    }


def test_every_package_is_listed_for_the_wheel():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = {line for line in config["options"]["packages"].split() if line}
    assert listed == packages_on_disk()


def test_both_packages_say_that_they_are_typed():
    assert (ROOT / "resilience" / "py.typed").exists()
    assert (ROOT / "cli" / "py.typed").exists()
