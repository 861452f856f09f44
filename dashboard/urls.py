"""The addresses of the pages."""

from django.urls import include, path

from dashboard import acting, bulk, creating, image_pages, job_pages, live, service_pages

services = [
    path("services/", service_pages.services, name="list"),
    path("services/new/", creating.new_service, name="new"),
    path("services/bulk/", bulk.bulk, name="bulk"),
    path("services/<str:reference>/", service_pages.service, name="show"),
    path("services/<str:reference>/logs/", service_pages.log, name="logs"),
    path("services/<str:reference>/<str:action>/", acting.act_on_service, name="act"),
    path("jobs/", job_pages.jobs, name="jobs"),
    path("jobs/<str:reference>/", job_pages.job, name="job"),
    path("jobs/<str:reference>/cancel/", acting.cancel_job, name="cancel-job"),
]
images = [
    path("", image_pages.images, name="list"),
    path("<str:reference>/", image_pages.image, name="show"),
    path("<str:reference>/<str:action>/", acting.act_on_image, name="act"),
]
urlpatterns = [
    path("", service_pages.services, name="overview"),
    path("live/", live.live, name="live"),
    path("", include((services, "services"))),
    path("images/", include((images, "images"))),
]
