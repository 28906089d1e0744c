"""psycopg2 under a manager: statements that end at the deadline, a pool that replaces the dead, whole transactions."""

from .connection import FailedTransaction, ResilientConnection
from .holders import PoolExhausted
from .pool import ResilientPool
from .transaction import run_transaction

__all__ = ["FailedTransaction", "PoolExhausted", "ResilientConnection", "ResilientPool", "run_transaction"]
