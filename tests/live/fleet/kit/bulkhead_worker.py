"""A process with a bulkhead on a shared store."""

import os
import threading
import time

from serving import losses, serve, told, when

from resilience import Bulkhead, BulkheadFullError, open_store

store = open_store(told.pop("url"))
bulkhead = Bulkhead(**told, store=store)
link = bulkhead.shared._link
lost = losses(link)


def work(seconds, log):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            bulkhead.acquire()
        except BulkheadFullError:
            log.append(None)
            time.sleep(0.01)
            continue
        began = time.monotonic()
        time.sleep(0.005)
        log.append((began, time.monotonic()))
        bulkhead.release()


def crowd(seconds):
    """When each body of eight threads began and ended; None: it was refused."""
    log = []
    threads = [threading.Thread(target=work, args=(seconds, log)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log


def take(count):
    """How many of so many slots were to be had; they are kept."""
    taken = 0
    for _ in range(count):
        try:
            bulkhead.acquire()
            taken += 1
        except BulkheadFullError:
            pass
    return taken


def fill(slots):
    """Takes slots until so many calls run here: a store that is slow for a moment gives none."""
    when(lambda: bulkhead.in_flight + take(slots - bulkhead.in_flight) >= slots)
    return bulkhead.in_flight


def is_joined():
    return bulkhead.shared._is_joined


def forked(fn):
    """What `fn` gives in the child of a fork: its exit code."""
    child = os.fork()
    if child == 0:
        try:
            link.start()
            when(is_joined)
            os._exit(fn())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


when(is_joined)
serve(globals())
