"""Fixtures for all tests, and the options of the fault suite."""

from hypothesis import HealthCheck, settings

from tests.faults.campaign import pytest_addoption
from tests.servers import folder
from tests.site_fixtures import admin, django_db_modify_db_settings, redis_server
from tests.stack import node, stack

__all__ = [
    "admin",
    "django_db_modify_db_settings",
    "folder",
    "node",
    "pytest_addoption",
    "redis_server",
    "stack",
]

# How fast examples are made says more about the machine's load than about them.
_CALM = [HealthCheck.too_slow]
# A commit passes or it doesn't: what is tried is the same each time. `make fuzz` looks for what is new.
_asked = settings(deadline=None, print_blob=True, suppress_health_check=_CALM)
settings.register_profile("suite", _asked, max_examples=100, derandomize=True)
settings.register_profile("search", _asked, max_examples=1000, derandomize=False)
settings.load_profile("suite")
