"""Five collectors against local HTTP sources, one of which dies and returns, in real time."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from resilience import ErrorRecoveryManager, RetryPolicy, WorkerGroup
from resilience.testing import eventually


class Source:
    """A local HTTP server that can be down (503) and up again."""

    def __init__(self):
        source = self
        self.up = True
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self):
                source.asked += 1
                self.send_response(200 if source.up else 503)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def sources():
    made = {name: Source() for name in ("binance", "kraken", "bybit", "okx", "mexc")}
    yield made
    for source in made.values():
        source.close()


def test_five_collectors_of_which_one_dies_and_returns(sources):
    heard = []

    def collector(source):
        def collect():
            response = requests.get(source.url, timeout=5)
            response.raise_for_status()

        return collect

    with ErrorRecoveryManager() as manager:
        manager.events.subscribe(heard.append, kinds=("worker_started", "worker_lost"))
        manager.register_retry_policy("market_data", RetryPolicy(max_retries=0))
        group = WorkerGroup(manager, name="collectors")
        for name, source in sources.items():
            group.add(name, collector(source), 0.05, operation="market_data", max_errors=5, restart_after=0.3,
                      max_restarts=1000)  # fmt: skip
        with group:
            eventually(lambda: all(source.asked >= 3 for source in sources.values()))
            assert group.is_healthy(min_ratio=1.0)
            sources["kraken"].up = False
            eventually(lambda: group.status()["kraken"]["interval"] == 0.1 or group.status()["kraken"]["restarts"])
            eventually(lambda: group.status()["kraken"]["state"] == "stopped")
            assert group.is_healthy()
            eventually(lambda: manager.monitor.report()["workers"]["kraken"]["is_running"] is False)
            assert manager.monitor.is_healthy()
            others = {name: source.asked for name, source in sources.items() if name != "kraken"}
            eventually(lambda: all(sources[name].asked > asked for name, asked in others.items()))
            sources["kraken"].up = True
            eventually(lambda: group.status()["kraken"]["error_count"] == 0 and group.status()["kraken"]["is_running"])
            eventually(lambda: group.status()["kraken"]["interval"] == 0.05)
            eventually(lambda: manager.monitor.report()["workers"]["kraken"]["is_running"])
            seen = group.status()["kraken"]
        assert seen["restarts"] >= 1
        assert seen["failures"] >= 5
        assert not group.is_healthy()
        manager.events.flush(10)
        assert {event.name for event in heard if event.kind == "worker_lost"} == {"kraken"}
        lost = next(event for event in heard if event.kind == "worker_lost")
        assert (lost.reason, lost.group) == ("5 failures in a row", "collectors")
        assert "503" in lost.error
        counts = manager.monitor.operations()["market_data"]
        assert counts["failures"] == seen["failures"]
        asked = sum(source.asked for source in sources.values())
        assert 0 <= counts["calls"] - asked <= 5  # at the stop one call of each worker may have been on its way
