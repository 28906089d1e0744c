"""What is known of all worker processes of this one."""

import weakref

from resilience.workers import process_start


class Worker:
    is_running = has_its_pid = True
    pid = 0

    def close(self):
        self.is_running = False


class Joined(weakref.WeakSet):
    """A set of workers that another one joins, once, while it is looked at."""

    late = Worker()

    def __iter__(self):
        for worker in super().__iter__():
            self.add(self.late)
            yield worker


def test_the_end_of_the_process_ends_its_workers_though_another_thread_starts_one(monkeypatch):
    first = Worker()
    monkeypatch.setattr(process_start, "LIVING", Joined([first]))
    monkeypatch.setattr(process_start.trees, "end_trees", lambda pids: None)
    process_start.end_all()
    assert not first.is_running
    assert not Joined.late.is_running
