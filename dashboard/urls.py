"""The addresses of the pages."""

from django.urls import include, path

from dashboard import (
    acting,
    asking,
    audit,
    bulk,
    comparing,
    creating,
    image_pages,
    job_pages,
    live,
    overview,
    pruning,
    service_pages,
)

services = [
    path("services/", service_pages.services, name="list"),
    path("services/new/", creating.new_service, name="new"),
    path("services/bulk/", bulk.bulk, name="bulk"),
    path("services/check-command/", asking.check_command, name="check-command"),
    path("services/<str:reference>/", service_pages.service, name="show"),
    path("services/<str:reference>/logs/", service_pages.log, name="logs"),
    path("services/<str:reference>/now/", asking.service_now, name="now"),
    path("services/<str:reference>/check/", asking.check_service, name="check"),
    path("services/<str:reference>/environment/", asking.service_environment, name="environment"),
    path("services/<str:reference>/<str:action>/", acting.act_on_service, name="act"),
    path("nodes/<int:pk>/check/", acting.check_node, name="check-node"),
    path("jobs/", job_pages.jobs, name="jobs"),
    path("jobs/<str:reference>/", job_pages.job, name="job"),
    path("jobs/<str:reference>/cancel/", acting.cancel_job, name="cancel-job"),
    path("jobs/<str:reference>/retry/", acting.retry_job, name="retry-job"),
]
images = [
    path("", image_pages.images, name="list"),
    path("compare/", comparing.compare, name="compare"),
    path("prune/", pruning.prune, name="prune"),
    path("<str:reference>/", image_pages.image, name="show"),
    path("<str:reference>/environment/", asking.image_environment, name="environment"),
    path("<str:reference>/<str:action>/", acting.act_on_image, name="act"),
]
urlpatterns = [
    path("", overview.overview, name="overview"),
    path("audit/", audit.audit, name="audit"),
    path("audit.csv", audit.audit_csv, name="audit-csv"),
    path("live/", live.live, name="live"),
    path("", include((services, "services"))),
    path("images/", include((images, "images"))),
]
