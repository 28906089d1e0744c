"""Cancelling an operation: it wakes whoever waits inside of it, and tells whoever asked to be told."""

import threading

from resilience.core.ambient import deadline, sleep
from resilience.core.context import OperationContext
from resilience.core.errors import OperationCancelled


def test_cancelling_wakes_a_sleep_of_the_operation_and_of_those_inside_it():
    started, ended = threading.Event(), []

    def work(ctx):
        with ctx, deadline(60.0) as inner:
            inner.on_cancel(lambda: ended.append("told"))
            started.set()
            try:
                sleep(30.0)
            except OperationCancelled as error:
                ended.append(error.reason)

    ctx = OperationContext("job")
    thread = threading.Thread(target=work, args=(ctx,))
    thread.start()
    started.wait(5)
    ctx.cancel("no longer needed")
    thread.join(5)
    assert not thread.is_alive()
    assert sorted(ended) == ["no longer needed", "told"]


def test_a_callback_of_a_cancelled_operation_runs_at_once_and_a_detached_one_never():
    told = []
    ctx = OperationContext("job")
    detach = ctx.on_cancel(lambda: told.append("detached"))
    detach()
    ctx.cancel()
    ctx.cancel("second")
    ctx.on_cancel(lambda: told.append("late"))
    assert told == ["late"]
    assert ctx.reason == ""
