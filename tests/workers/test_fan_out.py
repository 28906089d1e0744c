"""The mechanism of fan-out at the moments that only two threads make."""

import threading

from resilience.core.errors import DeadlineExceeded
from resilience.workers.fan_out import Job
from resilience.workers.gate import Gate


class Slots(dict):
    """Slots in which a visitor comes while an outcome is put there."""

    def __init__(self, visit):
        super().__init__()
        self.visitor = threading.Thread(target=visit)

    def pop(self, key, default=None):
        if self.visitor.ident is None:
            self.visitor.start()
            self.visitor.join(0.1)  # it may have to wait for us
        return super().pop(key, default)


def test_an_item_that_ends_in_the_moment_of_the_deadline_has_one_outcome():
    told = []
    gate = Gate(1, failure_threshold=0.5, window=20, min_calls=10, restore_after=10, tell=lambda kind, reason: None)
    gate.fall("one at a time")
    job = Job(str, [7], gate, finished=lambda index, slot: told.append(slot))
    late = DeadlineExceeded(name="late")
    job.slots = Slots(lambda: job.give_up("job", lambda started, stack="": late, None))
    job.start(lambda work, number: work(number), 1)
    job.slots.visitor.join(20)
    assert told == [job.slots[0]]
