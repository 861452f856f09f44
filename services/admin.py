"""Django's admin for services, jobs and tokens: to look at; status changes go through operations alone."""

# ruff: noqa: ARG002 (Django and ninja fix the arguments)

from collections.abc import Callable, Iterable, Set
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from services import operations
from services.auditing import ACTIONS, SOURCES, record_audit
from services.models import (
    ApiToken,
    AuditEvent,
    Job,
    JobEvent,
    JobLog,
    Node,
    Service,
    ServiceEvent,
    ServiceLoad,
)
from services.problems import Problem
from services.states import KINDS, JobKind, ServiceState

if TYPE_CHECKING:  # Django's own classes take no parameters
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[JobEvent, Job]
else:
    ModelAdmin = admin.ModelAdmin
    TabularInline = admin.TabularInline


class ReadOnly(ModelAdmin):
    """Rows that only workers and operations write."""

    # Some of these tables have hundreds of thousands of rows.
    list_per_page = 50
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Recorded(ModelAdmin):
    """Rows that are edited here: what Django notes of that for itself goes on the audit record, too.

    target_kind: what such a row is called there.
    """

    target_kind = ""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self._record(request, "add", obj, message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        self._record(request, "edit", obj, message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> Any:
        for row in queryset:
            self._record(request, "remove", row, [])
        return super().log_deletions(request, queryset)

    def _record(self, request: HttpRequest, action: str, row: Any, message: Any) -> None:
        said = [each.get("changed", {}).get("fields", []) for each in message if isinstance(each, dict)]
        fields = [str(name) for names in said for name in names]
        record_audit(
            request.user,
            "web",
            action,
            target_kind=self.target_kind,
            target_id=str(row),
            detail={"fields": fields} if fields else {},
        )


class Known(admin.SimpleListFilter):
    """A filter by a column's known values, for to ask the column for them is to read the whole table."""

    values: tuple[str, ...] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in self.values]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(**{self.parameter_name or "": self.value()}) if self.value() else queryset


class BySource(Known):
    title = parameter_name = "source"
    values = SOURCES


class ByAction(Known):
    title = parameter_name = "action"
    values = ACTIONS


@admin.register(Node)
class NodeAdmin(ReadOnly):
    list_display = ("name", "last_seen_at", "criu_version", "kernel")
    list_filter = ("criu_version", "last_seen_at")
    search_fields = ("name", "kernel")


def ask(request: HttpRequest, rows: Iterable[Any], operation: Callable[..., Job]) -> None:
    """Ask for a job on each row by its operation, and say what came of it."""
    asked = 0
    for row in rows:
        try:
            operation(row, actor=request.user, source="web")
        except Problem as problem:
            messages.error(request, f"{row}: {problem.message} {problem.remedy}")
        else:
            asked += 1
    if asked:
        messages.success(request, f"Asked for {asked} job{'s' if asked > 1 else ''}.")


MOST_AT_ONCE = 200  # rows; each comes back as a field of the form that asks


def confirmed(
    admin_page: Any,
    request: HttpRequest,
    rows: Any,
    operation: Callable[..., Job],
    *,
    verb: str,
    effect: str,
    unfit: Callable[[Any], str],
) -> HttpResponse | None:
    """Ask for a job on each row once the user has seen on a page of its own what will happen to which.

    verb: on the button. effect: what happens, in a sentence or two. unfit: why nothing will be asked of a
    row, "" if it fits.
    """
    if "confirmed" in request.POST:
        ask(request, rows, operation)
        return None
    chosen = list(rows[: MOST_AT_ONCE + 1])
    if len(chosen) > MOST_AT_ONCE:
        messages.error(request, f"Choose at most {MOST_AT_ONCE} at a time.")
        return None
    judged = [(row, unfit(row)) for row in chosen]
    context = {
        **admin_page.admin_site.each_context(request),
        "title": f"{verb}: are you sure?",
        "opts": admin_page.opts,
        "verb": verb,
        "effect": effect,
        "fit": [row for row, why in judged if not why],
        "unfit": [(row, why) for row, why in judged if why],
        "action": request.POST.get("action", ""),
        "field": ACTION_CHECKBOX_NAME,
    }
    return TemplateResponse(request, "admin/confirm.html", context)


def _unfit(allowed: Set[ServiceState], service: Service) -> str:
    return "" if service.state in allowed else f"it is {service.status}"


_may_dump = partial(_unfit, KINDS[JobKind.DUMP].allowed)
_may_stop = partial(_unfit, KINDS[JobKind.STOP].allowed)


@admin.action(description="Dump, leave running")
def dump_running(page: Any, request: HttpRequest, rows: Any) -> HttpResponse | None:
    effect = "Each is frozen for a moment, its memory is written into an image, and it goes on."
    operation = partial(operations.request_dump, leave_running=True)
    return confirmed(page, request, rows, operation, verb="Dump", effect=effect, unfit=_may_dump)


@admin.action(description="Dump and end")
def dump(page: Any, request: HttpRequest, rows: Any) -> HttpResponse | None:
    effect = (
        "Each is frozen, its memory is written into an image, and then it ends: it answers nobody until it "
        "is restored. Its open connections are held for the restore; new ones are refused."
    )
    operation = operations.request_dump
    return confirmed(page, request, rows, operation, verb="Dump and end", effect=effect, unfit=_may_dump)


@admin.action(description="Stop")
def stop(page: Any, request: HttpRequest, rows: Any) -> HttpResponse | None:
    effect = "Each is asked to end. What it has in memory is lost, and its connections are closed."
    operation = operations.request_stop
    return confirmed(page, request, rows, operation, verb="Stop", effect=effect, unfit=_may_stop)


@admin.register(Service)
class ServiceAdmin(ReadOnly):
    actions = (dump_running, dump, stop)
    exclude = ("env",)  # often passwords; `mhctl service show --env` shows it, and that is on the record
    list_display = ("id", "name", "node", "status", "pid", "created_at", "created_by")
    list_filter = ("status", "node")
    list_select_related = ("node",)
    search_fields = ("id", "name")


class EventInline(TabularInline):
    model = JobEvent
    extra = 0
    can_delete = False


@admin.register(Job)
class JobAdmin(ReadOnly):
    list_display = ("id", "kind", "service", "status", "step", "requested_by", "source", "queued_at")
    list_filter = ("status", "kind", "node", BySource)
    list_select_related = ("service", "node")
    search_fields = ("id", "service_ref", "image_id")
    inlines = (EventInline,)


@admin.register(ServiceEvent)
class ServiceEventAdmin(ReadOnly):
    list_display = ("at", "service_ref", "status", "pid", "exit_code", "exit_signal", "reason")
    list_filter = ("status",)
    search_fields = ("service_ref",)


@admin.register(JobLog)
class JobLogAdmin(ReadOnly):
    list_display = ("job",)
    search_fields = ("job__id",)


@admin.register(ServiceLoad)
class ServiceLoadAdmin(ReadOnly):
    list_display = ("service", "at", "cpu", "memory", "processes", "listening")
    list_select_related = ("service",)
    search_fields = ("service__id", "service__name")


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnly):
    list_display = ("at", "actor", "source", "address", "action", "target_kind", "target_id", "outcome")
    list_filter = (ByAction, "outcome", BySource)
    search_fields = ("actor", "target_id", "address")


@admin.register(ApiToken)
class ApiTokenAdmin(Recorded):
    """Tokens can be ended and taken away here; a new one is shown once, by manage.py token."""

    target_kind = "token"
    list_display = ("label", "user", "created_at", "last_used_at", "expires_at")
    list_filter = ("expires_at", "last_used_at")
    search_fields = ("label", "user__username")
    list_select_related = ("user",)
    fields = ("user", "label", "expires_at", "created_at", "last_used_at")
    readonly_fields = ("user", "created_at", "last_used_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False
