"""The log of a file store: emptied by who listens, because that waits for the disk, and not by calls."""

from resilience import open_store
from resilience.stores.file import EMPTY_EVERY
from resilience.testing import eventually
from resilience.testing.store_contract import count


def beginning(folder):
    """What changes whenever the log begins anew."""
    with open(folder / "state-wal", "rb") as log:
        return log.read(32)[16:24]


def test_a_change_does_not_empty_the_log(tmp_path):
    with open_store(f"file://{tmp_path}/state") as store:
        store.transact("key", count)
        before = beginning(tmp_path)
        for _ in range(3 * EMPTY_EVERY):
            store.transact("key", count)
        assert beginning(tmp_path) == before


def test_who_listens_empties_it(tmp_path):
    with open_store(f"file://{tmp_path}/state") as store, open_store(f"file://{tmp_path}/state") as other:
        store.subscribe("", lambda key, data: None)
        other.transact("key", count)
        before = beginning(tmp_path)
        for _ in range(EMPTY_EVERY):
            other.transact("key", count)
        eventually(lambda: other.transact("key", count) and beginning(tmp_path) != before)
        assert other.read("key") == store.read("key")
