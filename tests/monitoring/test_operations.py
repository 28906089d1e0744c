"""The counters of an operation, and the rates of its last five minutes."""

import threading

from resilience.monitoring.operations import WINDOW, OperationStats


def test_calls_are_counted_by_outcome():
    stats = OperationStats("api", 0.0)
    for _ in range(6):
        stats.record(1.0, 0.1, "success")
    stats.record(1.0, 0.1, "failure", retries=3, timed_out=True)
    stats.record(1.0, 0.1, "failure", fell_back=True)
    stats.record(1.0, 0.0, "rejection")
    stats.record(1.0, 0.1, "cancelled")
    shown = stats.snapshot(10.0)
    assert (shown["calls"], shown["successes"], shown["failures"], shown["rejections"]) == (10, 6, 2, 1)
    assert (shown["retries"], shown["timeouts"], shown["fallbacks"], shown["cancelled"]) == (3, 1, 1, 1)
    assert shown["success_rate"] == 0.75
    assert shown["throughput"] == 1.0
    assert abs(shown["p50"] - 0.1) < 0.002


def test_an_operation_without_calls_knows_no_rates():
    shown = OperationStats("api", 5.0).snapshot(5.0)
    assert (shown["success_rate"], shown["throughput"], shown["p99"]) == (None, None, None)


def test_counts_older_than_the_window_are_not_recent():
    stats = OperationStats("api", 0.0)
    for second in range(100):
        stats.record(float(second), 0.1, "failure")
    stats.record(250.0, 0.1, "success")
    recent, span = stats.recent(WINDOW + 150.0)
    assert (recent["failures"], recent["calls"], span) == (0, 1, WINDOW)
    assert stats.snapshot(WINDOW + 150.0)["failures"] == 100


def test_a_burst_before_a_long_silence_is_not_recent():
    stats = OperationStats("api", 0.0)
    for _ in range(50):
        stats.record(1.0, 0.1, "failure")
    assert stats.recent(2.0)[0]["failures"] == 50
    assert stats.recent(1.0 + WINDOW)[0]["failures"] == 0
    stats.record(5000.0, 0.1, "success")
    assert stats.recent(5001.0)[0]["calls"] == 1


def test_the_memory_of_a_window_is_bounded():
    stats = OperationStats("api", 0.0)
    for second in range(0, 100_000, 6):
        stats.record(float(second), 0.1, "success")
    assert len(stats._tallies) < 70


def test_threads_lose_no_count():
    stats = OperationStats("api", 0.0)

    def work():
        for _ in range(2000):
            stats.record(1.0, 0.1, "failure", retries=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = stats.snapshot(2.0)
    assert (shown["calls"], shown["failures"], shown["retries"]) == (16_000, 16_000, 16_000)


def test_calls_through_the_express_lane_are_counted_with_their_durations():
    from resilience import ErrorRecoveryManager
    from resilience.testing import ManualClock

    clock = ManualClock()
    with ErrorRecoveryManager(clock=clock) as manager:
        call = manager.protect("lane", isolation="caller")(clock.advance)
        for milliseconds in range(1, 101):
            call(milliseconds / 1000)
        for _ in range(100):
            call(0.0)
        counts = manager.monitor.operations()["lane"]
        assert (counts["calls"], counts["successes"], counts["failures"]) == (200, 200, 0)
        assert abs(counts["p95"] - 0.090) < 0.002
        assert abs(counts["p99"] - 0.098) < 0.002
        assert counts["p50"] == 0.0
