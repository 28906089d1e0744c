"""requests: total deadlines (`DeadlineAdapter`), and a session with everything registered for an operation."""

from .deadline import DeadlineAdapter
from .resilient import ResilientAdapter, by_method, host, resilient_session

__all__ = ["DeadlineAdapter", "ResilientAdapter", "by_method", "host", "resilient_session"]
