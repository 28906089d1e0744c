"""For tests with worker processes: their functions are found by name, and a worker does not import pytest first."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tasks"))


@pytest.fixture
def light_main(monkeypatch):
    """Worker processes started now do not import the main module (pytest) again."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None, raising=False)
    monkeypatch.delattr(main, "__file__", raising=False)
