"""Where the configuration file is (flag, RESILIENCE_CONFIG, ./resilience.yaml, the user's own), and where the state."""

from __future__ import annotations

import os
from pathlib import Path

from resilience.config.sources import Settings, load_settings

LOCAL = "resilience.yaml"


def config_path(given: str | None = None) -> str | None:
    """The file to read; None when there is none and nobody named one."""
    named = given or os.environ.get("RESILIENCE_CONFIG")
    if named:
        return named
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    for path in (Path(LOCAL), Path(home) / "resilience" / "config.yaml"):
        if path.exists():
            return str(path)
    return None


def settings(given: str | None = None) -> Settings:
    """The settings of that file and the environment; raises `ConfigError`."""
    return load_settings(config_path(given))


def state_folder() -> Path:
    """`$XDG_STATE_HOME/resilience`."""
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "resilience"


def store_url(given: str | None = None, *, make: bool = False) -> str | None:
    """The store: the flag, RESILIENCE_STORE, then the file in the state directory (None: not there and not `make`)."""
    named = given or os.environ.get("RESILIENCE_STORE")
    if named:
        return named
    path = state_folder() / "state"
    return path.absolute().as_uri() if make or path.exists() else None
