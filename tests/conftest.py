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
settings.register_profile(
    "suite", max_examples=100, deadline=None, print_blob=True, suppress_health_check=_CALM
)
settings.load_profile("suite")
