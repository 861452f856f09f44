"""Fixtures for all tests, and the options of the fault suite."""

from tests.faults.campaign import pytest_addoption
from tests.servers import folder
from tests.site_fixtures import django_db_modify_db_settings, redis_server
from tests.stack import node, stack

__all__ = ["django_db_modify_db_settings", "folder", "node", "pytest_addoption", "redis_server", "stack"]
