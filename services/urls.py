"""The addresses of the pages about services and jobs."""

from django.urls import path

from services import views

app_name = "services"
urlpatterns = [
    path("", views.services, name="list"),
    path("services/<str:reference>/logs/", views.service_logs, name="logs"),
    path("services/<str:reference>/<str:action>/", views.act, name="act"),
    path("jobs/", views.jobs, name="jobs"),
    path("jobs/<str:reference>/", views.job, name="job"),
    path("jobs/<str:reference>/cancel/", views.cancel_job, name="cancel-job"),
]
