"""A process with a retry budget on a shared store, whose dependency is down."""

import threading
import time

from serving import losses, serve, told, when

from resilience import RetryBudget, RetryPolicy, open_store

budget = RetryBudget(0.2, 1.0, 60.0, told["name"], store=open_store(told["url"]))
policy = RetryPolicy(max_retries=3, base_delay=0.0, max_delay=0.0, budget=budget)
link = budget._shared._link
lost = losses(link)
attempts = []


def down():
    attempts.append(1)
    raise ConnectionError("down")


def work(calls):
    for _ in range(calls):
        time.sleep(0.005)
        try:
            policy.call(down)
        except ConnectionError:
            pass


def go(calls):
    """How many attempts so many calls of each of four threads made, and whether the store was lost meanwhile."""
    threads = [threading.Thread(target=work, args=(calls,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = len(attempts)
    attempts.clear()
    return made, bool(lost)


when(lambda: link.clerk.epoch is not None and link.state == "ready")
serve(globals())
