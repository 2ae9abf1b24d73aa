"""Whose fault a failed answer is. Time is a number here."""

from __future__ import annotations

import pytest

from activities.upstreams.judgement import OUTAGE_FAILURES, Fault, Outcome, Witnesses

FAILURES = [Outcome.FAILED, Outcome.OVERLOADED]


def judge(it: Witnesses, key: object, *, more: bool = False) -> Fault:
    return it.judge(key, more_to_come=more)


@pytest.mark.parametrize("outcome", FAILURES)
def test_it_is_its_own_fault_once_a_later_request_is_answered(outcome: Outcome) -> None:
    it = Witnesses()
    bad, later = it.send("bad", 100), it.send("later", 101)
    it.failed(bad, outcome, 102)
    assert judge(it, "bad") is Fault.UNDECIDED
    it.answered(later, 103)
    assert judge(it, "bad") is Fault.REQUEST


@pytest.mark.parametrize(("outcome", "count"), [(Outcome.OVERLOADED, 2), (Outcome.FAILED, OUTAGE_FAILURES)])
def test_a_draining_engine_that_ends_what_runs_is_an_outage(outcome: Outcome, count: int) -> None:
    it = Witnesses()
    running = [it.send(f"running-{n}", 100) for n in range(4)]
    refused = [it.send(f"refused-{n}", 101 + n) for n in range(count)]
    for n, one in enumerate(refused):
        it.failed(one, outcome, 101.1 + n)
    for one in running:
        assert judge(it, "refused-0") is Fault.UNDECIDED
        it.answered(one, 105)
    assert {judge(it, f"refused-{n}") for n in range(count)} == {Fault.EVERYBODY}


def test_a_limit_is_no_request_s_fault() -> None:
    it = Witnesses()
    first = it.send("first", 100)
    refused = it.send("refused", 101)  # the second at once
    it.failed(refused, Outcome.OVERLOADED, 101)
    it.answered(first, 102)
    it.answered(it.send("later, alone", 103), 104)
    assert judge(it, "refused") is not Fault.REQUEST


@pytest.mark.parametrize("outcome", FAILURES)
def test_the_last_one_left_is_judged_alone(outcome: Outcome) -> None:
    it = Witnesses()
    other, bad = it.send("other", 100), it.send("bad", 101)
    it.failed(bad, outcome, 101)
    it.answered(other, 102)
    assert judge(it, "bad") is Fault.ALONE
    it.failed(it.send("bad", 200), outcome, 200, failed_before=True)
    assert judge(it, "bad") is Fault.ALONE


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT])
def test_the_last_few_that_are_left_are_judged_without_others(outcome: Outcome) -> None:
    it = Witnesses()
    few = [f"bad-{n}" for n in range(OUTAGE_FAILURES - 1)]
    it.answered(it.send("other", 100), 102)
    for at in (103, 1000):  # others were answered when they began to fail, which is remembered
        for one in [it.send(name, at) for name in few]:
            it.failed(one, outcome, at + 1)
        assert {judge(it, name) for name in few} == {Fault.ALONE}


@pytest.mark.parametrize("outcome", [*FAILURES, Outcome.TIMED_OUT])
def test_those_that_were_found_guilty_stay_so_when_only_they_are_left(outcome: Outcome) -> None:
    it = Witnesses()
    names = [f"bad-{n}" for n in range(2 * OUTAGE_FAILURES)]
    for one in [it.send(name, 100) for name in names]:
        it.failed(one, outcome, 101, failed_before=True)
    assert not it.looks_out()
    assert {judge(it, name) for name in names} == {Fault.ALONE}
    it.begin_outage(200)  # in which one of them asks after the upstream
    it.failed(it.send(names[0], 201), outcome, 202, failed_before=True)
    assert judge(it, names[0]) is Fault.ALONE


def test_what_begins_to_fail_when_nobody_is_answered_is_an_outage() -> None:
    it = Witnesses()
    for at in (100, 200, 300):
        it.failed(it.send("one", at), Outcome.FAILED, at + 1)
        assert judge(it, "one") is Fault.EVERYBODY


def test_many_failures_in_a_row_are_an_outage_and_an_answer_ends_it() -> None:
    it = Witnesses()
    sent = [it.send(n, 100 + n) for n in range(OUTAGE_FAILURES)]
    for one in sent:
        assert not it.looks_out()
        it.failed(one, Outcome.FAILED, 110)
    assert it.looks_out()
    it.begin_outage(111)
    assert judge(it, 0) is Fault.EVERYBODY
    it.answered(it.send("probe", 112), 113)
    assert not it.is_out


def test_a_few_failures_among_many_in_flight_are_no_outage() -> None:
    it = Witnesses()
    sent = [it.send(n, 100 + n) for n in range(64)]
    for one in sent[:OUTAGE_FAILURES]:
        it.failed(one, Outcome.FAILED, 200)
    assert not it.looks_out()


def test_a_timeout_in_a_queue_is_no_request_s_fault() -> None:
    it = Witnesses()
    sent = [it.send(n, 100) for n in range(9)]
    it.answered(sent[0], 101)
    for one in sent[1:]:
        it.failed(one, Outcome.TIMED_OUT, 102)
    assert not it.looks_out()
    it.answered(it.send("behind", 101.5), 102.5)  # what was dropped made room for it
    assert {judge(it, n) for n in range(1, 9)} == {Fault.EVERYBODY}


def test_a_timeout_is_its_own_fault_where_a_much_later_one_was_answered_or_it_was_alone() -> None:
    it = Witnesses()
    hangs = it.send("hangs", 100)
    it.answered(it.send("later", 106), 107)
    it.failed(hangs, Outcome.TIMED_OUT, 110)
    assert judge(it, "hangs") is Fault.REQUEST
    it.failed(it.send("hangs", 120), Outcome.TIMED_OUT, 130, failed_before=True)
    assert judge(it, "hangs") is Fault.ALONE


def hang(it: Witnesses, count: int, answered: int) -> list[str]:
    """So many are sent at once that hang, while so many others are sent after them and answered in good time."""
    names = [f"hangs-{n}" for n in range(count)]
    hanging = [it.send(name, 100) for name in names]
    for n in range(answered):
        it.answered(it.send(f"ok-{n}", 101 + n), 101.5 + n)
    for one in hanging:
        it.failed(one, Outcome.TIMED_OUT, 700)
    return names


def test_any_number_that_hung_while_many_others_were_answered_are_at_fault() -> None:
    it = Witnesses()
    names = hang(it, 2 * OUTAGE_FAILURES, 4 * OUTAGE_FAILURES)
    assert not it.looks_out()
    assert {judge(it, name) for name in names} == {Fault.ALONE}
    for one in [it.send(name, 800) for name in names]:  # now nobody else is left
        it.failed(one, Outcome.TIMED_OUT, 1400, failed_before=True)
    assert not it.looks_out()
    assert {judge(it, name) for name in names} == {Fault.ALONE}


def test_what_hung_while_many_others_were_answered_is_at_fault_once_another_is_answered() -> None:
    it = Witnesses()
    names = hang(it, 2, 4 * OUTAGE_FAILURES)
    running = it.send("running", 701)
    assert {judge(it, name) for name in names} == {Fault.UNDECIDED}
    it.answered(running, 1200)
    assert {judge(it, name) for name in names} == {Fault.REQUEST}


@pytest.mark.parametrize("order", [1, -1])
def test_an_engine_that_hangs_after_it_has_answered_many_is_an_outage(order: int) -> None:
    it = Witnesses()
    slow = [it.send(f"slow-{n}", 100) for n in range(2)]
    for n in range(4 * OUTAGE_FAILURES):
        it.answered(it.send(f"ok-{n}", 101 + n), 101.5 + n)
    last = [it.send(f"last-{n}", 200) for n in range(OUTAGE_FAILURES)]
    for one in slow + last:
        it.failed(one, Outcome.TIMED_OUT, 900)
    assert {judge(it, one.key) for one in (slow + last)[::order]} == {Fault.EVERYBODY}
