"""Django's admin for images: to look at; what it asks for goes through operations."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from images import operations
from images.models import Image, ImageContents, Schedule
from services.admin import ReadOnly, ask, confirmed
from services.states import KINDS, JobKind


@admin.action(description="Restore")
def restore(page: Any, request: HttpRequest, rows: Any) -> HttpResponse | None:
    effect = (
        "The service of each goes on from the moment of that dump: the same memory, new PIDs. "
        "Connections held since its last dump go on; those of an older image are closed."
    )
    operation = operations.request_restore
    return confirmed(page, request, rows, operation, verb="Restore", effect=effect, unfit=_unfit)


def _unfit(image: Image) -> str:
    if image.is_damaged:
        return "it is damaged"
    service = image.service
    if service is not None and service.state not in KINDS[JobKind.RESTORE].allowed:
        return f"its service {service} is {service.status}"
    return ""


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

    def get_queryset(self, request: HttpRequest) -> QuerySet[Image]:
        return super().get_queryset(request).defer("manifest")  # long, and shown nowhere


@admin.register(Schedule)
class ScheduleAdmin(ReadOnly):
    list_display = ("service", "every", "cron", "keep", "made_by", "next_at", "last_at", "skipped")
    list_select_related = ("service",)
    search_fields = ("service__id", "service__name")


@admin.register(ImageContents)
class ImageContentsAdmin(ReadOnly):
    list_display = ("image", "read_at", "error")
    list_select_related = ("image",)
    search_fields = ("image__id", "image__name")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ImageContents]:
        return super().get_queryset(request).defer("data", "image__manifest", "image__statistics")
