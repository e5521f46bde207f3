"""Operations of a history by hand, and the checkers of workloads as tests ask them."""

from __future__ import annotations

from onefold.testing.history import Operation
from onefold.testing.workload_checks import check_bank, check_counter, check_set


def op(kind, value=None, result=None, at=0, key=None, status="ok", process=0, until=None):
    """An operation of one time unit from ``at``, or until ``until``."""
    return Operation(process, kind, key, value, result, at, at + 1 if until is None else until, status)


def bank(operations):
    return check_bank(operations, 10, ["a", "b"], overdraft=False)


def counter_reads(operations):
    return check_counter(operations, every_read=True)


def set_reads(operations):
    return check_set(operations, every_read=True)
