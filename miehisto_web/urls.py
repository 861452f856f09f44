"""Which address is answered by whom."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import URLPattern, URLResolver, include, path

from miehisto_web.api import api

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", api.urls),
    path("admin/", admin.site.urls),
    path("login/", auth.LoginView.as_view(template_name="login.html"), name="login"),
    path("logout/", auth.LogoutView.as_view(), name="logout"),
    path("images/", include("images.urls")),
    path("", include("services.urls")),
]
handler403 = "miehisto_web.errors.forbidden"
handler404 = "miehisto_web.errors.not_found"
handler500 = "miehisto_web.errors.fault"
