"""`resilience completion SHELL`: click's own completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .output import emit


@click.command(
    epilog="""\b
Examples:
  resilience completion bash >> ~/.bashrc
  resilience completion fish > ~/.config/fish/completions/resilience.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    from .main import cli

    made = get_completion_class(shell)
    assert made is not None
    emit(made(cli, {}, "resilience", "_RESILIENCE_COMPLETE").source())
