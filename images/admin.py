"""Django's admin for images: to look at; changes go through operations alone."""

from django.contrib import admin

from images.models import Image
from services.admin import ReadOnly


@admin.register(Image)
class ImageAdmin(ReadOnly):
    exclude = ("manifest",)  # which has the service's environment
    list_display = ("id", "name", "comm", "service", "node", "status", "size_bytes", "created_at")
    list_filter = ("status", "node")
    list_select_related = ("service", "node")
    search_fields = ("id", "name", "service_ref")
