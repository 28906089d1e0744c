"""Who owns the retries of a call tree: found by looking outward, only when a retry is about to be made.

Marking every call would cost more than the call. So the functions of ours that run a user's function under a policy
register their code here; just before a retry the frames outside are looked through for them. Where a call hops to
another thread, and in `attempts()`, the ContextVar `retry_owner` continues the way.
"""

from __future__ import annotations

import sys

from ..core.ambient import retry_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType
    from typing import Any

    from .retry_policy import RetryPolicy

# By the code's id, for hashing a code object hashes all that is in it; the code is kept, so that its id stays its own.
_owners: dict[int, tuple[CodeType, Callable[[Any], Any]]] = {}


def register_owner(function: Any, policy_of: Callable[[Any], Any]) -> None:
    """Says that frames of `function` run a user's function under the policy that `policy_of(locals)` gives, or None.

    `function` is a function or a code object.
    """
    code = getattr(function, "__code__", function)
    _owners[id(code)] = code, policy_of


def register_wrapper(decorator: Any, policy_of: Callable[[Any], Any]) -> None:
    """The same for the wrapper that `decorator` defines inside itself and returns."""
    for constant in decorator.__code__.co_consts:
        if hasattr(constant, "co_code"):
            register_owner(constant, policy_of)


def owned_outside(would_retry: Callable[[RetryPolicy], bool], depth: int) -> bool:
    """Whether a policy outside of the frame `depth` would retry this itself: then the inner one leaves it to that."""
    frame: FrameType | None = sys._getframe(depth)
    owners = _owners
    link: Any = retry_owner.get()
    while True:
        while frame is not None:
            owner = owners.get(id(frame.f_code))
            if owner is not None and _takes(_policy_of(frame, owner[1]), would_retry):
                return True
            frame = frame.f_back
        if link is None:
            return False
        origin, link = link
        if hasattr(origin, "f_code"):
            frame = origin
        elif _takes(origin, would_retry):
            return True


def policies_outside(depth: int) -> list[RetryPolicy]:
    """The policies around the frame `depth` that own retries, innermost first: what travels to another process."""
    found = []

    def note(policy: RetryPolicy) -> bool:
        found.append(policy)
        return False

    owned_outside(note, depth + 1)
    return found


def pickled_policies(policies: list[RetryPolicy]) -> bytes:
    """The policies as bytes; one with rules that cannot be pickled goes without them. b"" for none."""
    import pickle

    sent = []
    for policy in policies:
        try:
            pickle.dumps(policy)
        except Exception:
            policy = policy.replace(
                retry_on=None, give_up_on=(), retry_on_result=None, budget=None, backoff="exponential"
            )
        sent.append(policy)
    return pickle.dumps(sent) if sent else b""


def _policy_of(frame: FrameType, policy_of: Callable[[Any], Any]) -> RetryPolicy | None:
    seen = frame.f_locals
    policy: RetryPolicy | None = policy_of(seen)
    if type(seen) is dict:  # before Python 3.13 a copy that the frame keeps: it would hold the error for ever
        seen.clear()
    return policy


def _takes(policy: RetryPolicy | None, would_retry: Callable[[RetryPolicy], bool]) -> bool:
    return policy is not None and policy.nested == "owner" and would_retry(policy)


def mark(origin: object) -> Any:
    """Makes `origin` (a frame that waits for us, or a policy) the owner for this context; gives the token to reset."""
    return retry_owner.set((origin, retry_owner.get()))


def _of_pipeline(variables: dict[str, Any]) -> Any:
    """The policy of a pipeline that is inside its express lane; the composed pipeline speaks for itself."""
    if not variables.get("token") or "failed" in variables:
        return None
    pipeline = variables.get("pipeline") or variables.get("self")
    for strategy in getattr(pipeline, "strategies", ()):
        policy = getattr(strategy, "policy", None)
        if policy is not None:
            return policy
    return None


def _register_pipeline() -> None:
    from ..core.pipeline import GUARDED, Pipeline

    register_owner(Pipeline.call, _of_pipeline)
    GUARDED.each_code(lambda code: register_owner(code, _of_pipeline))


_register_pipeline()
