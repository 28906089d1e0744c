"""redis-py under a manager: deadlines that hold, and no command run twice whose reply was lost."""

from .client import resilient_redis
from .commands import idempotent, is_idempotent

__all__ = ["idempotent", "is_idempotent", "resilient_redis"]
