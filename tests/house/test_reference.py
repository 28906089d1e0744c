"""The reference in docs/ says what the docstrings say."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_reference_is_what_the_docstrings_say_now():
    found = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    reference = importlib.util.module_from_spec(found)
    found.loader.exec_module(reference)
    assert reference.TARGET.read_text(encoding="utf-8") == reference.written(), "run: python docs/reference.py"
