"""The tests. What several of them share explains a failed assert as a test does."""

import pytest

pytest.register_assert_rewrite("tests.rows", "tests.servers", "tests.stack")
