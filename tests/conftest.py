"""For all tests: asserts in what they share tell as much as their own."""

import pytest

pytest.register_assert_rewrite("support")
