"""The loggers `resilience.<room>`: silent until the program configures logging."""

from __future__ import annotations

from .forks import imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger


def logger(room: str) -> Logger:
    """The logger of a room of the toolkit."""
    logging = imported("logging")
    ours = logging.getLogger("resilience")
    if not ours.handlers:
        ours.addHandler(logging.NullHandler())  # else Python prints warnings that nobody has asked for
    found: Logger = logging.getLogger(f"resilience.{room}")
    return found
