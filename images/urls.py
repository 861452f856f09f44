"""The addresses of the pages about images."""

from django.urls import path

from images import views

app_name = "images"
urlpatterns = [
    path("", views.images, name="list"),
    path("<str:reference>/<str:action>/", views.act, name="act"),
]
