"""What an exception says: its category, whether a retry may help, and what became of the call that raised it.

The libraries are recognised by the names of their classes along the MRO; none of them is imported. Classification sits
on the path of every failed call: what was found out about a type is remembered, and where the type alone decides, the
one verdict made for it is handed out again.
"""

from __future__ import annotations

from .classification import Classification
from .errors import ConfigError, ErrorCategory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .verdicts.rows import Reader

    Rule = Any  # a callable exc -> verdict or None, or a pair (type(s) or predicate, verdict)
    Asked = Callable[[BaseException], Classification | None]
    Plan = tuple[tuple[Reader, ...], Classification | None]  # whom to ask about an instance, and what holds otherwise

__all__ = ["Classification", "Classifier", "classify"]

_UNKNOWN = Classification(ErrorCategory.TRANSIENT, True, "unknown", None, "unknown")
_LONGEST_CHAIN = 100  # exceptions; a longer chain has told what it had to tell
_DEEPEST = 8  # exceptions wrapped in one another's arguments, or groups that are causes of members of groups
_REMEMBERED = 1000  # types; a program that makes types as it goes starts anew from there

_fixed: dict[type, Classification] = {}  # the verdict, where the type alone decides
_plans: dict[type, Plan] = {}  # what to do, where it does not
_groups: set[type] = set()  # exception groups


class Classifier:
    """Judges exceptions by `rules` of the user first, then by the built-in ones. Immutable, safe to share.

    A rule is a callable that gives a `Classification`, an `ErrorCategory` or None (no opinion), or a pair of (exception
    type, tuple of types or predicate) and such a verdict. The first rule with an opinion decides; an exception that a
    rule raises passes through. Rules are not asked about what is no `Exception`: that is never retried. Raises
    `ConfigError` for a rule, or an opinion, of another kind.
    """

    __slots__ = ("_rules",)

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        if not hasattr(rules, "__iter__"):
            raise ConfigError(f"expected a list of rules, not {rules!r}", key="rules", value=rules)
        self._rules = tuple(_as_rule(rule) for rule in rules)

    def classify(self, error: BaseException, *, handling: BaseException | None = None) -> Classification:
        """The verdict on `error`, its own type first, then its causes, then the context it was raised in.

        `handling` is the exception that was being handled already when the call began (`sys.exc_info()[1]` there):
        it and what lies behind it say nothing about the call.
        """
        if not self._rules:
            return classify(error, handling=handling)
        return _Judgement(self._rules, handling).of(error) or _UNKNOWN

    def __repr__(self) -> str:
        return f"Classifier({len(self._rules)} rules)"


def classify(error: BaseException, *, handling: BaseException | None = None) -> Classification:
    """The verdict of the built-in rules on `error`: see `Classification` and `Classifier.classify`.

    Unknown exceptions are TRANSIENT and retryable, as the specification retries. Thread-safe; raises nothing.
    """
    found = _fixed.get(type(error)) or _own(error)
    if found is not None:
        return found
    try:
        if error.__cause__ is None and error.__context__ is None and type(error) not in _groups:
            return _UNKNOWN
    except Exception:  # a class that hides these behind attributes of its own
        return _UNKNOWN
    return _Judgement((), handling).of(error) or _UNKNOWN


# -- Rules of the user ---------------------------------------------------------------------------------------------


def _as_rule(rule: Rule) -> Asked:
    if isinstance(rule, tuple) and len(rule) == 2:
        match, opinion = rule
        label = getattr(match, "__name__", None) or "|".join(getattr(kind, "__name__", "?") for kind in _tuple(match))
        if all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in _tuple(match)) and match != ():
            verdict = _opinion(opinion, label, none=False)
            return lambda error: verdict if isinstance(error, match) else None
        if callable(match) and not isinstance(match, type):
            verdict = _opinion(opinion, label, none=False)
            return lambda error: verdict if match(error) else None
    elif callable(rule) and not isinstance(rule, type):
        name = getattr(rule, "__name__", type(rule).__name__)
        return lambda error: _opinion(rule(error), name)
    expected = "expected a callable or a pair (exception type(s) or predicate, verdict)"
    raise ConfigError(f"{expected}, not {rule!r}", key="rules", value=rule)


def _tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _opinion(value: object, label: str, *, none: bool = True) -> Classification | None:
    if isinstance(value, Classification) or (value is None and none):
        return value
    try:
        return Classification(ErrorCategory(value), reason=f"rule:{label}")
    except ValueError:
        expected = "expected a Classification, an ErrorCategory" + (" or None" if none else "")
        raise ConfigError(f"{expected}, not {value!r}", key="rules", value=value) from None


# -- One exception by itself ---------------------------------------------------------------------------------------


def _own(error: BaseException, depth: int = _DEEPEST) -> Classification | None:
    """What the type and the attributes of `error` say, whatever it was raised from."""
    kind = type(error)
    readers, final = _plans.get(kind) or _plan(kind)
    for reader in readers:
        try:
            found = reader(error)
        except Exception:  # an instance that cannot be looked at tells nothing
            continue
        if found is None:
            continue
        if isinstance(found, BaseException):
            found = _own(found, depth - 1) if depth else None
        if found is not None:
            return found
    return final


def _plan(kind: type) -> Plan:
    """Finds out what to do about a type: along its MRO, up to the first class that has a verdict of its own."""
    from .verdicts import entry_of

    if len(_plans) >= _REMEMBERED:
        for memory in (_plans, _fixed, _groups):
            memory.clear()
    readers: list[Reader] = []
    final: Classification | None = None
    if _is_group(kind):
        _groups.add(kind)
    elif not issubclass(kind, Exception):
        final = Classification(ErrorCategory.PERMANENT, False, "unknown", None, f"base:{kind.__name__}")
    else:
        for ancestor in kind.__mro__:
            reader, final = entry_of(ancestor)
            if reader is not None:
                readers.append(reader)
            if final is not None:
                break
        else:
            if kind.__module__ != "builtins":  # somebody's own class: it may carry a response
                from .verdicts.http import by_response

                readers.append(by_response)
    plan = tuple(readers), final
    _plans[kind] = plan
    if final is not None and not readers:
        _fixed[kind] = final
    return plan


def _is_group(kind: type) -> bool:
    """Python's own exception groups; on 3.10 those of the package of that name."""
    return any(
        ancestor.__name__ == "BaseExceptionGroup" and ancestor.__module__ in ("builtins", "exceptiongroup")
        for ancestor in kind.__mro__
    )


# -- Chains and groups ---------------------------------------------------------------------------------------------


class _Judgement:
    """One look at an exception with all that hangs on it; nothing is looked at twice, so cycles end."""

    __slots__ = ("depth", "found", "handling", "rules")

    def __init__(self, rules: tuple[Asked, ...], handling: BaseException | None) -> None:
        self.rules = rules
        self.handling = handling
        self.found: dict[int, Classification | None] = {}
        self.depth = 0

    def of(self, error: BaseException) -> Classification | None:
        """The verdict of `error`, else of what it came from."""
        verdict = None
        passed: list[int] = []
        current: BaseException | None = error
        while current is not None and len(passed) < _LONGEST_CHAIN:
            if id(current) in self.found:
                verdict = self.found[id(current)]
                break
            self.found[id(current)] = None
            passed.append(id(current))
            verdict = self._alone(current)
            if verdict is not None:
                break
            current = self._before(current)
        for number in passed:
            self.found[number] = verdict
        return verdict

    def _alone(self, error: BaseException) -> Classification | None:
        if isinstance(error, Exception):
            for rule in self.rules:
                opinion = rule(error)
                if opinion is not None:
                    return opinion
        verdict = _own(error)
        return self._group(error) if verdict is None and type(error) in _groups else verdict

    def _before(self, error: BaseException) -> BaseException | None:
        """What `error` was raised from: its cause, or else what its function was handling."""
        try:
            before = error.__cause__
            if before is None and not error.__suppress_context__ and error is not self.handling:
                before = error.__context__
                if before is self.handling:
                    return None
        except Exception:  # see above
            return None
        return before if isinstance(before, BaseException) else None

    def _group(self, group: Any) -> Classification | None:
        """Retryable only if every member is; the worst names the category and the reason."""
        if self.depth >= _DEEPEST:
            return None
        self.depth += 1
        verdicts = [self.of(member) or _UNKNOWN for member in self._members(group)]
        self.depth -= 1
        if not verdicts:
            return None
        worst = max(verdicts, key=_badness)
        waits = [verdict.retry_after for verdict in verdicts if verdict.retry_after is not None]
        return Classification(
            worst.category,
            worst.retryable,
            max((verdict.outcome for verdict in verdicts), key=_OUTCOMES.index),
            max(waits, default=None),
            f"group:{worst.reason}",
        )

    def _members(self, group: Any) -> list[BaseException]:
        """The members of the group and of the groups within, unless a rule of the user judges such a group as one."""
        members: list[BaseException] = []
        seen = {id(group)}
        waiting = [group]
        while waiting:
            for member in waiting.pop().exceptions:
                if id(member) in seen:
                    continue
                seen.add(id(member))
                if _is_group(type(member)) and not any(rule(member) for rule in self.rules):
                    waiting.append(member)
                else:
                    members.append(member)
        return members


_OUTCOMES = ("not_sent", "answered", "partial", "unknown")
_SEVERITY = {ErrorCategory.TRANSIENT: 0, ErrorCategory.RESOURCE: 1, ErrorCategory.PERMANENT: 2, ErrorCategory.LOGIC: 3}


def _badness(verdict: Classification) -> tuple[bool, int]:
    return not verdict.retryable, _SEVERITY[verdict.category]
