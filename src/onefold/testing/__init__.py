"""The test kit: conformance suites, simulators and checkers. Product code does not import it."""

from onefold.testing.fold_suite import check_fold
from onefold.testing.log_suite import check_log

__all__ = ["check_fold", "check_log"]
