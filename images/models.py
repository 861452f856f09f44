"""Rows about images: what the worker read out of a sealed dump. Status is written by operations.py alone."""

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from services.models import Job, Node, Service
from services.references import ReferenceQuerySet


class ImageState(StrEnum):
    """sealed: its manifest says what is in it. damaged: a verification found otherwise."""

    SEALED = "sealed"
    DAMAGED = "damaged"


class ImageQuerySet(ReferenceQuerySet["Image"]):
    def for_display(self) -> "ImageQuerySet":
        """With the node and the service, in one query."""
        return self.select_related("node", "service")

    def newest_at(self) -> float:
        """When the newest of them was made, in seconds since 1970; 0 if there is none."""
        newest: datetime | None = self.aggregate(newest=models.Max("created_at"))["newest"]
        return newest.timestamp() if newest else 0.0


class Image(models.Model):
    """A sealed dump of a service in the image pool of its node."""

    id = models.CharField(max_length=32, primary_key=True, editable=False)
    name = models.CharField(max_length=63, blank=True, default="")
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="images")
    service = models.ForeignKey(
        Service, on_delete=models.SET_NULL, null=True, blank=True, related_name="images"
    )
    service_ref = models.CharField(max_length=32, blank=True, default="")
    comm = models.CharField(max_length=64, blank=True, default="")
    path = models.CharField(max_length=4096)
    size_bytes = models.BigIntegerField(default=0)
    pages_bytes = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()
    leave_running = models.BooleanField(default=False)
    status = models.CharField(
        max_length=16,
        choices=[(state.value, state.value) for state in ImageState],
        default=ImageState.SEALED.value,
    )
    damage = models.JSONField(blank=True, default=list)
    verified_at = models.DateTimeField(null=True, blank=True)
    criu_version = models.CharField(max_length=64, blank=True, default="")
    kernel = models.CharField(max_length=255, blank=True, default="")
    argv = models.JSONField(blank=True, default=list)
    statistics = models.JSONField(blank=True, default=dict)
    manifest = models.JSONField(blank=True, default=dict)
    # Whether the worker has looked into it, well or in vain; what it saw is in `contents`.
    is_read = models.BooleanField(default=False)

    objects = ImageQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "name"], condition=~Q(name=""), name="images_image_name_once_a_node"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["service_ref", "-created_at"], name="images_image_of_service"),
            models.Index(fields=["created_at", "id"], name="images_image_by_age"),
            # Answers the sums of the overview without reading a manifest.
            models.Index(fields=["node", "status", "size_bytes"], name="images_image_sums"),
            models.Index(fields=["node"], condition=Q(is_read=False), name="images_image_not_read"),
        ]
        permissions: ClassVar = [("restore_foreign", "May restore an image that was imported")]

    def __str__(self) -> str:
        return self.name or self.id

    @property
    def origin(self) -> dict[str, Any] | None:
        """By whom, when and from where an imported image came; None for one of this node's own dumps."""
        found = (self.manifest or {}).get("origin")
        return found if isinstance(found, dict) else None

    @property
    def is_foreign(self) -> bool:
        return self.origin is not None

    @property
    def carried(self) -> list[str]:
        """The files and folders whose data it holds; empty if it holds memory only."""
        found = (self.manifest or {}).get("carried")
        return [str(path) for path in found] if isinstance(found, list) else []

    @property
    def is_damaged(self) -> bool:
        return self.status == ImageState.DAMAGED.value


class Schedule(models.Model):
    """When a service is dumped without anybody asking; written by schedules.py alone.

    every: seconds, or cron: five fields, in UTC. keep: how many of its images stay. next_at: when it is due.
    last_at: when it was due last; skipped: why nothing was asked for then. last_job: the last that it asked
    for; settled: whether what follows from the end of that has been done.
    """

    service = models.OneToOneField(
        Service,
        on_delete=models.CASCADE,
        primary_key=True,
        related_name="schedule",
        db_constraint=False,  # an older worker deletes a service without knowing of this; such a row is inert
    )
    every = models.PositiveIntegerField(null=True, blank=True)
    cron = models.CharField(max_length=200, blank=True, default="")
    keep = models.PositiveIntegerField()
    made_by = models.CharField(max_length=150, blank=True, default="")
    made_at = models.DateTimeField()
    next_at = models.DateTimeField(db_index=True)
    last_at = models.DateTimeField(null=True, blank=True)
    last_job = models.CharField(max_length=32, blank=True, default="")
    skipped = models.TextField(blank=True, default="")
    settled = models.BooleanField(default=True)

    def __str__(self) -> str:
        return f"schedule of {self.service_id}"


class ImageContents(models.Model):
    """What the worker read out of CRIU's files, once; data: as worker/inspecting.py tells it.

    Of the environment it has names only. error: why nothing could be read, then data is empty.
    """

    image = models.OneToOneField(Image, on_delete=models.CASCADE, primary_key=True, related_name="contents")
    read_at = models.DateTimeField()
    error = models.TextField(blank=True, default="")
    data = models.JSONField(blank=True, default=dict)

    class Meta:
        verbose_name_plural = "contents of images"

    def __str__(self) -> str:
        return f"contents of {self.image_id}"


class ImageEnvironment(models.Model):
    """The environment in an image, values included, for the one who asked; it is deleted minutes later."""

    job = models.OneToOneField(Job, on_delete=models.CASCADE, primary_key=True, related_name="environment")
    image = models.ForeignKey(Image, on_delete=models.CASCADE, related_name="+")
    read_at = models.DateTimeField()
    data = models.JSONField(blank=True, default=dict)

    def __str__(self) -> str:
        return f"environment of {self.image_id}"
