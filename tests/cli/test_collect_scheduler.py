"""Which request goes next: decided without threads, on a clock of its own."""

import random

import pytest
from resilience_cli.collect.answer import Answer, Onward
from resilience_cli.collect.hosts import Host
from resilience_cli.collect.inputs import read_items
from resilience_cli.collect.pace import Pace
from resilience_cli.collect.scheduler import Scheduler
from resilience_cli.collect.tasks import Rules

from resilience.strategies.circuit_breaker import CircuitBreaker, CircuitBreakerConfig
from resilience.strategies.retry import RetryPolicy
from resilience.testing import ManualClock

TRANSIENT = {"ok": False, "category": "transient", "is_retryable": True}
OK = {"ok": True, "status": 200}
REFUSED = {**TRANSIENT, "error": "connection refused", "blames_host": True, "sent": False}
UNAVAILABLE = {**TRANSIENT, "status": 503, "error": "503", "blames_host": True}
MISSING = {"ok": False, "status": 404, "error": "404", "category": "permanent", "blames_host": False}
LIMITED = {**TRANSIENT, "status": 429, "error": "429", "blames_host": None, "retry_after": 2.0}
CUT = {**TRANSIENT, "error": "timeout", "blames_host": True}


class Bench:
    """A scheduler with its clock; `serve` answers everything that may be sent, until nothing is left to do."""

    def __init__(self, lines, *, workers=50, per_host=4, attempts=4, breaker=None, draw=lambda: 0.5, **rules):
        self.clock = ManualClock()
        self.config = CircuitBreakerConfig(**(breaker or {}))
        items = read_items([line.encode() for line in lines], "x").items
        policy = RetryPolicy(jitter=False)
        self.pace = Pace(workers)
        self.per_host = per_host
        self.scheduler = Scheduler(items, self.host, Rules(policy, attempts, 10.0, per_host, **rules), self.pace, draw)
        self.finals = []
        self.sent = []

    def host(self, name):
        return Host(name, CircuitBreaker(name, self.config, clock=self.clock), self.per_host)

    @property
    def now(self):
        return self.clock.monotonic()

    def take(self):
        attempt = self.scheduler.take(self.now)
        if attempt is not None:
            self.sent.append((self.now, attempt.task.item.url))
        return attempt

    def take_all(self):
        return list(iter(self.take, None))

    def finish(self, attempt, **answer):
        final = self.scheduler.finish(attempt, Answer(**answer), self.now)
        if final is not None:
            self.finals.append(final)
        return final

    def serve(self, behave):
        """Runs to the end: `behave(url, how many times it was asked)` -> fields of the answer."""
        asked = {}
        while not self.scheduler.is_over:
            attempts = self.take_all()
            for attempt in attempts:
                url = attempt.task.item.url
                asked[url] = asked.get(url, 0) + 1
                self.finish(attempt, **behave(url, asked[url]))
            if not attempts and not self.scheduler.is_over:
                self.clock.advance(self.scheduler.next_timer() - self.now)
        self.finals += self.scheduler.leftovers(self.now, False)
        return {final.task.item.url: final.answer for final in self.finals}


def urls(host, count):
    return [f"http://{host}.test/{number}" for number in range(count)]


def test_hosts_take_turns_and_none_gets_more_than_its_share():
    bench = Bench(urls("a", 10) + urls("b", 10), per_host=3)
    taken = [attempt.task.host.name[0] for attempt in bench.take_all()]
    assert taken == ["a", "b"] * 3


def test_a_dead_host_sees_as_many_requests_as_its_threshold_and_the_run_ends():
    bench = Bench(urls("dead", 10), per_host=8)
    answers = bench.serve(lambda url, turn: REFUSED)
    assert len(bench.sent) == 5
    assert len(bench.finals) == len(answers) == 10
    assert sorted(answer.error for answer in answers.values()) == (
        ["connection refused; breaker open"] * 5 + ["not tried: breaker open (connection refused)"] * 5
    )
    assert {answer.category for answer in answers.values()} == {"transient"}
    assert bench.now < 1.0  # it did not wait for the breaker


def test_while_failures_are_pending_fewer_requests_are_in_flight():
    bench = Bench(urls("a", 20), per_host=8)
    first = bench.take_all()
    assert len(first) == 5  # not proven: no more than the threshold
    for attempt in first:
        bench.finish(attempt, **OK)
    second = bench.take_all()
    assert len(second) == 8
    bench.finish(second[0], **REFUSED)
    for attempt in second[1:5]:
        bench.finish(attempt, **MISSING)  # an answer: no failure is pending any more
    bench.finish(second[5], **REFUSED)
    bench.finish(second[6], **REFUSED)
    bench.finish(second[7], **REFUSED)
    assert len(bench.take_all()) == 2  # three failures pending, threshold five


def test_with_wait_open_the_run_waits_and_one_probe_goes_first():
    bench = Bench(urls("a", 10), wait_open=True, breaker={"timeout": 60.0})
    back = 100.0
    answers = bench.serve(lambda url, turn: OK if bench.now >= back else REFUSED)
    assert all(answer.ok for answer in answers.values())
    times = [at for at, _ in bench.sent]
    assert sum(at < 60.0 for at in times) == 5
    assert sum(60.0 <= at < back for at in times) == 1  # one probe, and it failed
    assert len(answers) == 10


def test_a_shelved_host_gets_its_probe_while_others_keep_the_run_going():
    bench = Bench([*urls("dead", 6), "http://slow.test/"], breaker={"timeout": 5.0})
    attempts = bench.take_all()
    slow = next(attempt for attempt in attempts if "slow" in attempt.task.item.url)
    for attempt in attempts:
        if attempt is not slow:
            bench.finish(attempt, **REFUSED)
    for attempt in bench.take_all():
        bench.finish(attempt, **REFUSED)
    assert bench.take() is None
    bench.clock.advance(5.0)
    probes = bench.take_all()
    assert [attempt.task.host.name for attempt in probes] == ["dead.test:80"]
    bench.finish(probes[0], **OK)
    assert len(bench.take_all()) > 1


def test_a_retry_after_pauses_the_whole_host_and_is_never_undercut():
    bench = Bench(urls("a", 6), per_host=2, draw=random.Random(1).random)
    first, second = bench.take_all()
    bench.finish(first, **LIMITED)
    bench.finish(second, **OK)
    assert bench.take() is None
    bench.clock.advance(1.9999)
    assert bench.take() is None
    bench.clock.advance(0.2001)  # at most a tenth later
    again = bench.take_all()
    assert [attempt.task.item.url for attempt in again] == [first.task.item.url]  # it first, and alone


def test_a_limited_host_never_opens_its_breaker():
    bench = Bench(urls("a", 30), per_host=8)
    answers = bench.serve(lambda url, turn: LIMITED if turn == 1 else OK)
    assert all(answer.ok for answer in answers.values())
    assert str(bench.scheduler.hosts["a.test:80"].breaker.state) == "closed"


@pytest.mark.parametrize("rules", [{"max_retry_after": 1.0}, {"deadline": 1.5}])
def test_a_wish_that_is_too_long_leaves_the_host_for_another_run(rules):
    bench = Bench([*urls("a", 5), "http://b.test/"], **rules)
    answers = bench.serve(lambda url, turn: LIMITED if "a.test" in url else OK)
    assert answers.pop("http://b.test/").ok
    assert len(answers) == 5
    assert {(answer.category, answer.retry_after) for answer in answers.values()} == {("transient", 2.0)}
    assert bench.now < 1.0


def test_retries_wait_on_the_heap_with_the_delays_of_the_policy():
    bench = Bench(urls("a", 1), breaker={"failure_threshold": 10})
    bench.serve(lambda url, turn: UNAVAILABLE)
    assert [round(at, 6) for at, _ in bench.sent] == [0.0, 0.1, 0.3, 0.7]
    assert bench.finals[0].task.attempts == 4


def test_permanent_answers_are_final_and_no_failure_of_the_host():
    bench = Bench(urls("a", 30))
    answers = bench.serve(lambda url, turn: MISSING)
    assert len(bench.sent) == 30
    assert {answer.category for answer in answers.values()} == {"permanent"}
    assert not bench.pace.is_slowed


@pytest.mark.parametrize(
    ("answer", "calls", "category"),
    [(REFUSED, 4, "transient"), (UNAVAILABLE, 4, "transient"), (LIMITED, 4, "transient"), (CUT, 1, "permanent"),
     ({**UNAVAILABLE, "status": 500}, 1, "permanent")],
)  # fmt: skip
def test_a_post_is_repeated_only_when_not_sent_or_told_to_come_back(answer, calls, category):
    bench = Bench(['{"url": "http://a.test/", "method": "POST"}'], breaker={"failure_threshold": 10})
    (found,) = bench.serve(lambda url, turn: answer).values()
    assert len(bench.sent) == calls
    assert found.category == category


def test_half_failing_means_one_at_a_time_and_successes_bring_it_back():
    bench = Bench([f"http://h{number}.test/" for number in range(200)], attempts=1)
    first = bench.take_all()
    assert len(first) == 50
    for attempt in first[:10]:
        bench.finish(attempt, **REFUSED)
    assert bench.pace.limit == 1
    for attempt in first[10:]:
        bench.finish(attempt, **OK)
    while not bench.scheduler.is_over:
        taken = bench.take_all()
        assert len(taken) <= bench.pace.limit
        for attempt in taken:
            bench.finish(attempt, **OK)
    assert not bench.pace.is_slowed


def test_a_dead_host_with_an_open_breaker_does_not_slow_down_the_others():
    bench = Bench(urls("dead", 5) + urls("a", 5) + urls("b", 5), per_host=5)
    attempts = {attempt.task.item.url: attempt for attempt in bench.take_all()}
    for url in urls("dead", 5):
        bench.finish(attempts[url], **REFUSED)
    for url in urls("a", 5):
        bench.finish(attempts[url], **OK)
    for url in urls("b", 2):  # 7 of 12 without the breaker of the dead one, 2 of 7 with it
        bench.finish(attempts[url], **REFUSED)
    assert bench.pace.times_slowed == 0


def test_a_host_that_answered_before_its_breaker_opened_is_probed_by_one_request_too():
    bench = Bench(urls("a", 20), wait_open=True, breaker={"timeout": 60.0})
    bench.serve(lambda url, turn: REFUSED if len(bench.sent) > 4 and bench.now < 70.0 else OK)
    assert sum(60.0 <= at < 70.0 for at, _ in bench.sent) == 1


def test_no_room_on_this_machine_slows_down_and_blames_nobody():
    bench = Bench(urls("a", 40), attempts=20)
    exhausted = {**TRANSIENT, "category": "resource", "error": "Too many open files", "blames_host": None}
    exhausted |= {"sent": False, "is_exhausted": True}
    answers = bench.serve(lambda url, turn: exhausted if turn == 1 and len(bench.sent) < 20 else OK)
    assert all(answer.ok for answer in answers.values())
    assert bench.pace.times_slowed >= 1
    assert str(bench.scheduler.hosts["a.test:80"].breaker.state) == "closed"


def redirect(host, hops=1):
    return {"ok": False, "status": 302, "error": f"redirected to {host}", "onward": Onward(None, host, hops)}


def test_a_redirect_goes_on_under_the_breaker_and_the_limits_of_the_host_it_leads_to():
    bench = Bench([*urls("a", 10), *urls("b", 10), *urls("c", 10)], per_host=4)
    for name in ("a.test:80", "b.test:80"):
        bench.scheduler.hosts[name].is_proven = True
    led, peak = 0, 0
    while attempts := bench.take_all():
        for attempt in attempts:
            host = attempt.task.host
            if host.name == "dead.test:80":
                peak = max(peak, host.in_flight)
                bench.finish(attempt, **REFUSED)
                led += 1
            elif host.name == "c.test:80":
                bench.finish(attempt, **OK)
            else:
                bench.finish(attempt, **redirect("dead.test:80"))
    dead = bench.scheduler.hosts["dead.test:80"]
    assert (led, peak <= 4, str(dead.breaker.state)) == (5, True, "open")
    assert all(str(bench.scheduler.hosts[f"{name}.test:80"].breaker.state) == "closed" for name in "abc")
    assert bench.scheduler.hosts["a.test:80"].moved == 10
    assert bench.scheduler.is_over
    bench.finals += bench.scheduler.leftovers(bench.now, False)
    assert len(bench.finals) == 30
    assert sum(final.answer.ok for final in bench.finals) == 10
    assert {final.task.host.name for final in bench.finals if not final.answer.ok} == {"dead.test:80"}
    assert all("redirected to dead.test:80" in f.answer.error or "refused" in f.answer.error
               for f in bench.finals if not f.answer.ok)  # fmt: skip


def test_a_redirected_attempt_is_one_attempt_within_one_timeout():
    bench = Bench(["http://a.test/1"], attempts=2)
    first = bench.take()
    bench.clock.advance(4.0)
    bench.finish(first, **redirect("b.test:80"))
    second = bench.take()
    assert (second.task.attempts, second.task.host.name, second.deadline) == (1, "b.test:80", 10.0)
    bench.finish(second, **UNAVAILABLE)
    bench.clock.advance(5.0)
    third = bench.take()  # tried again where it was led to, as a second attempt with a timeout of its own
    assert (third.task.attempts, third.task.onward.host, third.deadline) == (2, "b.test:80", 19.0)
    assert bench.finish(third, **OK).answer.ok


def test_the_pause_of_a_host_holds_for_those_who_are_redirected_to_it():
    bench = Bench([*urls("a", 2), *urls("b", 2)], breaker={"failure_threshold": 99})
    attempts = bench.take_all()
    bench.finish(attempts[0], **redirect("limited.test:80"))
    bench.finish(bench.take(), **LIMITED)
    for attempt in attempts[1:]:
        bench.finish(attempt, **redirect("limited.test:80"))
    assert bench.take() is None
    bench.clock.advance(1.9)
    assert bench.take() is None
    bench.clock.advance(0.3)
    assert bench.take() is not None


def test_the_journal_hears_of_breakers_and_of_pauses():
    bench = Bench(urls("a", 6), breaker={"failure_threshold": 1})
    bench.finish(bench.take(), **LIMITED)
    assert bench.scheduler.news == [("a.test:80", 2.0)]
    bench.clock.advance(3.0)
    bench.finish(bench.take(), **REFUSED)
    assert bench.scheduler.news[1:] == [("a.test:80", "open")]


def test_what_hangs_at_the_end_is_given_up_once():
    bench = Bench(urls("a", 3), deadline=5.0)
    attempts = bench.take_all()
    bench.finish(attempts[0], **OK)
    bench.clock.advance(5.0)
    assert bench.take() is None
    left = list(bench.scheduler.leftovers(bench.now, True))
    assert [final.answer.error for final in left] == ["out of time: --deadline passed"] * 2
    assert bench.finish(attempts[1], **OK) is None


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_item_ends_exactly_once_and_the_limits_hold(seed):
    rng = random.Random(seed)
    lines = [f"http://h{rng.randrange(6)}.test/{number}" for number in range(120)]
    bench = Bench(lines, workers=12, per_host=3, draw=rng.random, breaker={"timeout": 1.0}, wait_open=seed % 2 == 0)
    kinds = [OK, OK, OK, OK, REFUSED, UNAVAILABLE, MISSING, {**LIMITED, "retry_after": 0.5}]
    flying = []
    peace = {}
    while not bench.scheduler.is_over:
        while (attempt := bench.take()) is not None:
            assert bench.now >= peace.get(attempt.task.host.name, 0.0)
            flying.append(attempt)
            assert len(flying) <= 12
        for name in {attempt.task.host.name for attempt in flying}:
            assert sum(attempt.task.host.name == name for attempt in flying) <= 3
        if flying and rng.random() < 0.8:
            attempt = flying.pop(rng.randrange(len(flying)))
            answer = rng.choice(kinds)
            bench.finish(attempt, **answer)
            if answer.get("retry_after"):
                peace[attempt.task.host.name] = bench.now + answer["retry_after"]
        else:
            bench.clock.advance(rng.random() * 0.2)
    bench.finals += bench.scheduler.leftovers(bench.now, False)
    assert sorted(final.task.item.url for final in bench.finals) == sorted(set(lines))
