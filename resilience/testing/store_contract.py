"""What every store has to do, as tests to inherit: `class TestMine(StoreContract)` with a `url`, run by pytest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from itertools import pairwise

from ..core.clock import SYSTEM
from ..core.errors import StoreUnavailable
from ..stores.opening import open_store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..stores.port import Store

PATIENCE = 20.0  # seconds: only a store that is broken takes them
COUNTER = """
import sys
from resilience.stores.opening import open_store
url, key, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open_store(url) as store:
    for _ in range(times):
        store.transact(key, lambda old, now: ({"n": (old or {"n": 0})["n"] + 1}, None), within=20.0)
"""


def count(old: Any, now: float) -> tuple[Any, Any]:
    """A change that counts its uses, and answers how many there were."""
    number = (old or {"n": 0})["n"] + 1
    return {"n": number}, number


class StoreContract:
    """Tests that hold for every store. Set `url`, or override `open`; `is_shared` False skips those with processes."""

    url = ""
    is_shared = True

    def open(self) -> Store:
        """A new handle on the store."""
        return open_store(self.url)

    @staticmethod
    def key(name: str = "key") -> str:
        """A key that nobody else uses."""
        return f"contract/{uuid.uuid4().hex}/{name}"

    def test_what_was_never_there_is_none(self) -> None:
        with self.open() as store:
            assert store.read(self.key()) is None

    def test_a_change_is_seen_by_every_handle_and_gives_its_answer(self) -> None:
        key = self.key()
        data = {"version": 1, "text": "Zürich \u2028 \U0001f600", "list": [1, 2.5, None, True], "deep": {"a": {}}}
        with self.open() as store, self.open() as other:
            assert store.transact(key, lambda old, now: (data, ("answer", old))) == ("answer", None)
            assert store.read(key) == other.read(key) == data
            assert other.transact(key, lambda old, now: (old, old)) == data

    def test_a_stale_handle_changes_what_is_there_and_not_what_it_had_seen(self) -> None:
        key = self.key()
        with self.open() as store, self.open() as other:
            for number in range(1, 6):
                assert (store, other)[number % 2].transact(key, count) == number
            assert store.transact(key, lambda old, now: (old, old["n"])) == 5

    def test_none_deletes_and_a_key_may_come_back(self) -> None:
        key = self.key()
        with self.open() as store, self.open() as other:
            for _ in range(2):
                assert store.transact(key, count) == 1
                assert other.transact(key, lambda old, now: (None, old)) == {"n": 1}
                assert store.read(key) is None
                assert store.keys(key) == []
            assert other.transact(key, lambda old, now: (None, "nothing")) == "nothing"

    def test_keys_are_found_by_their_beginning_and_sorted(self) -> None:
        prefix = self.key("")
        names = [prefix + name for name in ("b", "a", "a%", "a_c", "ä", "[x]*", "B")]
        with self.open() as store:
            for name in names:
                store.transact(name, count)
            assert store.keys(prefix) == sorted(names)
            assert store.keys(prefix + "a") == sorted(prefix + name for name in ("a", "a%", "a_c"))
            assert store.keys(prefix + "none") == []

    def test_a_change_that_raises_leaves_everything_as_it_was(self) -> None:
        key = self.key()

        def bad(old: Any, now: float) -> tuple[Any, Any]:
            old["n"] = 99
            raise ZeroDivisionError

        with self.open() as store:
            store.transact(key, count)
            for change in (bad, lambda old, now: ({"n": object()}, None), lambda old, now: ({"n": float("nan")}, None)):
                try:
                    store.transact(key, change)
                except (ZeroDivisionError, TypeError, ValueError):
                    pass
                else:
                    raise AssertionError("the error did not come through")
            assert store.read(key) == {"n": 1}
            assert store.transact(key, count) == 2

    def test_large_data_survive(self) -> None:
        key = self.key()
        data = {"text": "x" * 100_000}
        heard = Heard()
        with self.open() as store, self.open() as other:
            store.subscribe(key, heard)
            other.transact(key, lambda old, now: (data, None))
            assert store.read(key) == data
            heard.wait_for(lambda: heard.latest.get(key) == data)

    def test_threads_lose_no_change(self) -> None:
        key = self.key()
        with self.open() as store, self.open() as other:
            threads = [
                threading.Thread(target=lambda s=s: [s.transact(key, count, within=PATIENCE) for _ in range(25)])
                for s in (store, other) * 4
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert store.read(key) == {"n": 200}

    def test_processes_lose_no_change(self) -> None:
        if not self.is_shared:
            return
        key = self.key()
        command = [sys.executable, "-c", COUNTER, self.url, key, "50"]
        processes = [subprocess.Popen(command) for _ in range(4)]
        assert [process.wait(60) for process in processes] == [0] * 4
        with self.open() as store:
            assert store.read(key) == {"n": 200}

    def test_a_subscriber_hears_of_the_changes_of_others_and_ends_with_the_latest(self) -> None:
        prefix = self.key("")
        heard = Heard()
        with self.open() as store, self.open() as other:
            other.transact(prefix + "before", count)
            detach = store.subscribe(prefix, heard)
            for _ in range(20):
                other.transact(prefix + "a", count)
            other.transact(prefix + "b", count)
            other.transact(prefix + "b", lambda old, now: (None, None))
            other.transact(self.key("elsewhere"), count)
            heard.wait_for(
                lambda: heard.latest.get(prefix + "a") == {"n": 20} and heard.of(prefix + "b")[-1:] == [None]
            )
            numbers = [data["n"] for data in heard.of(prefix + "a")]
            assert numbers == sorted(numbers)
            assert set(heard.latest) <= {prefix + "a", prefix + "b", prefix + "before"}
            detach()
            told = len(heard.calls)
            other.transact(prefix + "a", count)
            again = Heard()
            store.subscribe(prefix, again)
            other.transact(prefix + "a", count)
            again.wait_for(lambda: again.latest.get(prefix + "a") == {"n": 22})
            assert len(heard.calls) == told

    def test_a_subscriber_hears_of_whatever_comes_after_it_has_subscribed(self) -> None:
        for _ in range(5):
            key = self.key()
            heard = Heard()
            with self.open() as store, self.open() as other:
                other.keys(key)
                store.subscribe(key, heard)
                other.transact(key, count)
                other.transact(key, lambda old, now: (None, None))
                heard.wait_for(lambda: heard.of(key)[-1:] == [None])  # noqa: B023  # it ends within this round

    def test_a_subscriber_that_raises_disturbs_nobody(self) -> None:
        import logging

        key = self.key()
        heard = Heard()

        def bad(key: str, data: Any) -> None:
            raise ZeroDivisionError

        logger = logging.getLogger("resilience.store")
        quiet = logging.NullHandler()
        logger.addHandler(quiet)
        try:
            with self.open() as store, self.open() as other:
                store.subscribe(key, bad)
                store.subscribe(key, heard)
                other.transact(key, count)
                heard.wait_for(lambda: heard.latest.get(key) == {"n": 1})
        finally:
            logger.removeHandler(quiet)

    def test_time_is_the_stores_and_goes_forward(self) -> None:
        key = self.key()
        with self.open() as store, self.open() as other:
            times = [store.now(), other.now(), store.transact(key, lambda old, now: ({}, now)), other.now()]
            for earlier, later in pairwise(times):
                assert -0.25 < later - earlier < PATIENCE

    def test_a_closed_store_says_so_and_closes_once_more(self) -> None:
        store = self.open()
        store.transact(self.key(), count)
        store.subscribe("", lambda key, data: None)
        store.close()
        store.close()
        for use in (lambda: store.read("a"), lambda: store.transact("a", count), store.keys, store.now):
            try:
                use()
            except StoreUnavailable:
                continue
            raise AssertionError(f"{use} worked on a closed store")
        assert "closed" in repr(store)

    def test_a_forked_child_and_its_parent_both_go_on(self) -> None:
        if not (self.is_shared and hasattr(os, "fork")):
            return
        key = self.key()
        heard = Heard()
        with self.open() as store:
            store.subscribe(key, heard)
            store.transact(key, count)
            pid = os.fork()
            if pid == 0:
                try:
                    mine = Heard()
                    store.subscribe(key, mine)
                    store.transact(key, count)
                    mine.wait_for(lambda: mine.latest.get(key, {}).get("n", 0) >= 2)
                    os._exit(0)
                finally:
                    os._exit(1)
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert store.transact(key, count) == 3
            heard.wait_for(lambda: heard.latest.get(key) == {"n": 3})


class Heard:
    """A subscriber that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.latest: dict[str, Any] = {}
        self._changed = threading.Condition()

    def __call__(self, key: str, data: Any) -> None:
        with self._changed:
            self.calls.append((key, data))
            self.latest[key] = data
            self._changed.notify_all()

    def of(self, key: str) -> list[Any]:
        """What was told of one key."""
        return [data for told, data in list(self.calls) if told == key]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds; raises `AssertionError` when it never does."""
        end = SYSTEM.monotonic() + PATIENCE
        with self._changed:
            while not condition():
                left = end - SYSTEM.monotonic()
                assert left > 0, f"told of nothing but {self.calls[-5:]}"
                SYSTEM.wait(self._changed, left)
