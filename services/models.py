"""Rows: nodes, services, jobs with their events, tokens, the audit. Status is written by operations alone."""

import shlex
import uuid
from enum import StrEnum
from typing import Any, ClassVar

from django.conf import settings
from django.db import models
from django.db.models import OuterRef, Q, Subquery

from services.references import ReferenceQuerySet
from services.states import ACTIVE_JOB, JobKind, JobState, ServiceState, has_process


def new_id() -> str:
    """Return 32 random hex digits."""
    return uuid.uuid4().hex


def _choices(states: type[ServiceState] | type[JobState] | type[JobKind]) -> list[tuple[str, str]]:
    return [(state.value, state.value) for state in states]


class NodeManager(models.Manager["Node"]):
    def local(self) -> "Node":
        """Return this host's node (MIEHISTO_NODE), made when it isn't there yet."""
        return self.get_or_create(name=settings.MIEHISTO_NODE)[0]


class Node(models.Model):
    """A host with a worker."""

    name = models.CharField(max_length=255, unique=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    criu_version = models.CharField(max_length=64, blank=True, default="")
    kernel = models.CharField(max_length=255, blank=True, default="")
    capabilities = models.JSONField(blank=True, default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[NodeManager] = NodeManager()

    def __str__(self) -> str:
        return self.name


class ServiceQuerySet(ReferenceQuerySet["Service"]):
    MOST_NAMED = 200

    def with_process(self) -> "ServiceQuerySet":
        """Only services that have a process of their own now."""
        return self.filter(pid__isnull=False)

    def ids_named(self, text: str) -> list[str]:
        """Return the ids of services whose name has this text, 200 at the most.

        For a search of other rows by their service. Read first: as a subquery it would keep the database from
        the indexes of those.
        """
        return list(self.filter(name__icontains=text).values_list("id", flat=True)[: self.MOST_NAMED])

    def for_display(self) -> "ServiceQuerySet":
        """With the node and the id of the active job (`active_job_id`), in one query."""
        active = Job.objects.filter(service=OuterRef("pk"), status__in=ACTIVE_JOB).values("id")[:1]
        return self.select_related("node").annotate(active_job_id=Subquery(active))


class Service(models.Model):
    """A server program that Miehistö starts, dumps and restores."""

    id = models.CharField(max_length=32, primary_key=True, default=new_id, editable=False)
    name = models.CharField(max_length=63, blank=True, default="")
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="services")
    argv = models.JSONField(default=list)
    user = models.CharField(max_length=255, default="root")
    group = models.CharField(max_length=255, blank=True, default="")
    cwd = models.CharField(max_length=4096, default="/")
    env = models.JSONField(blank=True, default=dict)
    binds = models.JSONField(blank=True, default=list)
    data = models.JSONField(blank=True, default=list)
    carry = models.JSONField(blank=True, default=list)
    privileges = models.JSONField(blank=True, default=dict)
    limits = models.JSONField(blank=True, default=dict)
    restore_on_boot = models.BooleanField(default=False)
    status = models.CharField(
        max_length=16, choices=_choices(ServiceState), default=ServiceState.CREATED.value
    )
    status_reason = models.TextField(blank=True, default="")
    pid = models.PositiveIntegerField(null=True, blank=True)
    supervisor_pid = models.PositiveIntegerField(null=True, blank=True)
    exit_code = models.IntegerField(null=True, blank=True)
    exit_signal = models.IntegerField(null=True, blank=True)
    created_at = models.DateTimeField()
    changed_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    created_by = models.CharField(max_length=150, blank=True, default="")
    image_id = models.CharField(max_length=32, blank=True, default="")

    objects = ServiceQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "name"], condition=~Q(name=""), name="services_service_name_once_a_node"
            ),
            models.CheckConstraint(
                condition=Q(status__in=[state.value for state in ServiceState]),
                name="services_service_status_known",
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["pid"])]
        permissions: ClassVar = [
            ("see", "May see services, images and jobs, and services' logs"),
            ("operate", "May create, start, stop, dump, restore, verify, rename and cancel"),
            ("administer", "May delete, and run services as root"),
            ("audit", "May see who did what"),
        ]

    def __str__(self) -> str:
        return self.name or self.id

    @property
    def state(self) -> ServiceState:
        return ServiceState(self.status)

    @property
    def has_process(self) -> bool:
        return has_process(self.state)

    @property
    def command(self) -> str:
        """The command line as one string for people; never run it."""
        return shlex.join(self.argv)


class JobQuerySet(ReferenceQuerySet["Job"]):
    name_field = ""

    def active(self) -> "JobQuerySet":
        return self.filter(status__in=ACTIVE_JOB)

    def for_display(self) -> "JobQuerySet":
        """With node, service and `about_name`, in one query."""
        about = Service.objects.filter(pk=OuterRef("service_ref")).order_by().values("name")[:1]
        shown = self.select_related("service", "node")
        return shown.annotate(about_name=Subquery(about))  # type: ignore[no-redef]  # it fills that attribute


class Job(models.Model):
    """One piece of work for a worker, and afterwards its history."""

    id = models.CharField(max_length=32, primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=16, choices=_choices(JobKind))
    service = models.ForeignKey(
        Service, on_delete=models.SET_NULL, null=True, blank=True, related_name="jobs"
    )
    service_ref = models.CharField(max_length=32, blank=True, default="")
    node = models.ForeignKey(Node, on_delete=models.PROTECT, related_name="jobs")
    image_id = models.CharField(max_length=32, blank=True, default="")
    options = models.JSONField(blank=True, default=dict)
    status = models.CharField(max_length=16, choices=_choices(JobState), default=JobState.QUEUED.value)
    step = models.CharField(max_length=64, blank=True, default="")
    requested_by = models.CharField(max_length=150, blank=True, default="")
    source = models.CharField(max_length=16, blank=True, default="")
    service_state_before = models.CharField(max_length=16, blank=True, default="")
    queued_at = models.DateTimeField()
    sent_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=255, blank=True, default="")
    error_code = models.CharField(max_length=64, blank=True, default="")
    error_message = models.TextField(blank=True, default="")
    error_remedy = models.TextField(blank=True, default="")
    error_lines = models.JSONField(blank=True, default=list)
    error_actions = models.JSONField(blank=True, default=list)
    # The id of the job that this one tries again.
    retry_of = models.CharField(max_length=32, blank=True, default="")
    traceback = models.TextField(blank=True, default="")
    result = models.JSONField(blank=True, default=dict)
    statistics = models.JSONField(blank=True, default=dict)

    objects = JobQuerySet.as_manager()

    # The events of a job just inserted, so that the answer needs no query for them.
    known_events: "list[JobEvent] | None" = None
    # The name of the service that it is about, also where it doesn't hold it: it only looks, or works on an
    # image. From `for_display()` or from who made it; None for a service that is gone.
    about_name: str | None = None

    class Meta:
        ordering: ClassVar = ["-queued_at", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["service"],
                condition=Q(status__in=[JobState.QUEUED.value, JobState.RUNNING.value]),
                name="services_job_one_active_a_service",
            ),
            models.CheckConstraint(
                condition=Q(status__in=[state.value for state in JobState]), name="services_job_status_known"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["-queued_at", "-id"]),
            models.Index(fields=["node", "status"]),
            # What the pages list: by state, by kind, by where from, of a service; the newest first.
            models.Index(fields=["status", "-queued_at", "-id"], name="services_job_by_status"),
            models.Index(fields=["kind", "-queued_at", "-id"], name="services_job_by_kind"),
            models.Index(fields=["source", "-queued_at", "-id"], name="services_job_by_source"),
            models.Index(fields=["service_ref", "-queued_at", "-id"], name="services_job_by_service"),
            models.Index(fields=["image_id", "-queued_at", "-id"], name="services_job_by_image"),
            # Few jobs fail, many are dumps: by kind alone a database would look through all of them.
            models.Index(fields=["status", "kind", "-queued_at", "-id"], name="services_job_by_both"),
            # What a scrape of the metrics has not counted yet.
            models.Index(fields=["finished_at"], name="services_job_by_end"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def state(self) -> JobState:
        return JobState(self.status)

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE_JOB

    @property
    def seconds(self) -> float | None:
        """How long a worker had it, None as long as it is not ended."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()

    @property
    def error(self) -> dict[str, Any] | None:
        """What went wrong, or None."""
        if not self.error_code:
            return None
        return {
            "code": self.error_code,
            "message": self.error_message,
            "remedy": self.error_remedy,
            "lines": self.error_lines,
            "actions": self.error_actions,
        }


class JobEvent(models.Model):
    """One transition or step of a job; rows are only ever added."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    status = models.CharField(max_length=16, choices=_choices(JobState))
    step = models.CharField(max_length=64, blank=True, default="")
    text = models.TextField(blank=True, default="")

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return f"{self.status} {self.step}".rstrip()


class JobLog(models.Model):
    """The end of CRIU's log of a job that failed. It is apart from the job, for lists need not carry it."""

    job = models.OneToOneField(Job, on_delete=models.CASCADE, primary_key=True, related_name="log")
    text = models.TextField()

    def __str__(self) -> str:
        return f"log of {self.job_id}"


class JobSums(models.Model):
    """What the jobs that ended before a moment add up to, the one row that metrics/history.py keeps."""

    until = models.DateTimeField()
    sums = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"jobs until {self.until}"


class ServiceEvent(models.Model):
    """A service came into a state; rows are only ever added, by progress.py. Its life is read from these.

    It names the service by its id, for a deleted one that is restored goes on with its life.
    """

    service_ref = models.CharField(max_length=32)
    at = models.DateTimeField()
    status = models.CharField(max_length=16, choices=_choices(ServiceState))
    reason = models.TextField(blank=True, default="")
    pid = models.PositiveIntegerField(null=True, blank=True)
    exit_code = models.IntegerField(null=True, blank=True)
    exit_signal = models.IntegerField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [models.Index(fields=["service_ref", "-id"])]

    def __str__(self) -> str:
        return f"{self.service_ref} {self.status}"


class ServiceLoad(models.Model):
    """What a service used when it was last looked at; written by loads.py.

    cpu: cores; None at the first look. memory: bytes. listening: addresses, such as 127.0.0.1:80.
    """

    service = models.OneToOneField(Service, on_delete=models.CASCADE, primary_key=True, related_name="load")
    at = models.DateTimeField()
    cpu = models.FloatField(null=True, blank=True)
    memory = models.BigIntegerField(default=0)
    processes = models.PositiveIntegerField(default=0)
    listening = models.JSONField(blank=True, default=list)

    def __str__(self) -> str:
        return f"load of {self.service_id}"


class ServiceSample(models.Model):
    """What a service used at one moment of the last hour; written and deleted by loads.py."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="samples", db_index=False)
    at = models.DateTimeField(db_index=True)
    cpu = models.FloatField(null=True, blank=True)
    memory = models.BigIntegerField(default=0)
    processes = models.PositiveIntegerField(default=0)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["service", "at"])]

    def __str__(self) -> str:
        return f"{self.service_id} {self.at}"


class ApiToken(models.Model):
    """A key to the API; only its SHA-256 is kept."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="api_tokens")
    digest = models.CharField(max_length=64, unique=True)
    label = models.CharField(max_length=100, blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.label or f"token {self.pk}"


class AuditOutcome(StrEnum):
    """asked: there is a job now that tells the rest. done: it happened. refused: it was not allowed."""

    ASKED = "asked"
    DONE = "done"
    REFUSED = "refused"


class AuditEvent(models.Model):
    """Somebody did or asked for something; rows are only ever added, by auditing.py.

    It names what it is about by kind and id, for it outlives that.
    """

    at = models.DateTimeField(db_index=True)
    actor = models.CharField(max_length=150, blank=True, default="", db_index=True)
    source = models.CharField(max_length=16, blank=True, default="")
    address = models.CharField(max_length=64, blank=True, default="")
    action = models.CharField(max_length=64)
    target_kind = models.CharField(max_length=16, blank=True, default="")
    target_id = models.CharField(max_length=64, blank=True, default="", db_index=True)
    outcome = models.CharField(
        max_length=16, choices=[(outcome.value, outcome.value) for outcome in AuditOutcome]
    )
    detail = models.JSONField(blank=True, default=dict)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.actor} {self.action} {self.target_kind} {self.target_id}".rstrip()
