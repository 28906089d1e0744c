"""A witness of how busy the machine is: what a test says about the toolkit's waits leaves that out."""

import threading
import time

PAUSE = 0.005  # seconds


class Stalls:
    """How long a thread that does nothing was kept from going on, at most: `longest`, in seconds."""

    def __init__(self):
        self.longest = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        due = time.monotonic()
        while not self._is_over.wait(PAUSE):
            now, due = time.monotonic(), due + PAUSE
            self.longest = max(self.longest, now - due)
            due = now

    def end(self):
        self._is_over.set()
        self._thread.join()
