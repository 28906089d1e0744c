"""The records of a journal as they are written: one shape for the file, for `--nl` and for the tests of scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..output import redacted

if TYPE_CHECKING:
    from .inputs import Item
    from .tasks import Final


def final_record(final: Final, at: float) -> dict[str, Any]:
    """The end of an item in one run: the only kind of record with a boolean `ok`."""
    task, answer = final.task, final.answer
    record: dict[str, Any] = {
        "url": redacted(task.item.url),
        "ok": answer.ok,
        "status": answer.status,
        "attempts": task.attempts,
        "elapsed_s": round(final.elapsed, 6),
        "host": task.host.name,  # the last one asked: a redirect may have led there
        "key": task.item.key,
        "at": round(at, 3),
    }
    if task.item.method != "GET":
        record["method"] = task.item.method
    if answer.ok:
        record["bytes"] = answer.size
        if answer.path is not None:
            record["path"] = answer.path
        return record
    record["category"] = answer.category
    record["error"] = redacted(answer.error)
    if answer.retry_after is not None:
        record["retry_after"] = answer.retry_after
    return record


def started_record(item: Item, at: float) -> dict[str, Any]:
    """Written before a request that must not be made twice: without an end after it, nobody knows whether it was."""
    return {"event": "started", "url": redacted(item.url), "method": item.method, "key": item.key, "at": round(at, 3)}


def breaker_record(host: str, state: str, at: float) -> dict[str, Any]:
    """The breaker of a host has changed its state: a resumed run probes those left open instead of trusting them."""
    return {"event": "breaker", "host": host, "state": state, "at": round(at, 3)}


def pause_record(host: str, wait: float, at: float) -> dict[str, Any]:
    """A host asked for peace (Retry-After): a resumed run keeps it too."""
    return {"event": "pause", "host": host, "wait_s": round(wait, 3), "at": round(at, 3)}


def run_record(items: int, skipped: int, at: float) -> dict[str, Any]:
    """A run begins."""
    return {"event": "run", "items": items, "skipped": skipped, "at": round(at, 3)}
