"""Django's admin for images: to look at; what it asks for goes through operations."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from images import operations
from images.models import Image
from services.admin import ReadOnly, ask


@admin.action(description="Restore")
def restore(_admin: Any, request: HttpRequest, rows: Any) -> None:
    ask(request, rows, operations.request_restore)


@admin.action(description="Verify")
def verify(_admin: Any, request: HttpRequest, rows: Any) -> None:
    ask(request, rows, operations.request_verify)


@admin.register(Image)
class ImageAdmin(ReadOnly):
    actions = (restore, verify)
    exclude = ("manifest",)  # which has the service's environment
    list_display = ("id", "name", "comm", "service", "node", "status", "size_bytes", "created_at")
    list_filter = ("status", "node")
    list_select_related = ("service", "node")
    search_fields = ("id", "name", "service_ref")
