"""Fixtures for all tests."""

from tests.servers import folder
from tests.site_fixtures import django_db_modify_db_settings, redis_server
from tests.stack import node, stack

__all__ = ["django_db_modify_db_settings", "folder", "node", "redis_server", "stack"]
