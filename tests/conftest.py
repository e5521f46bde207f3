"""For all tests: asserts in what they share tell as much as their own, and no program outlives the tests that started it."""

import pytest

pytest.register_assert_rewrite("support")

from support import guardian  # noqa: E402 - rewritten, too

guardian.watch()
