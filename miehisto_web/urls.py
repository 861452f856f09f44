"""Which address is answered by whom."""

from django.contrib import admin
from django.contrib.auth import views as auth
from django.urls import URLPattern, URLResolver, include, path

from metrics.views import metrics
from miehisto_web import account
from miehisto_web.api import api
from miehisto_web.gate import without_role

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/v1/", api.urls),
    path("admin/", admin.site.urls),
    path("login/", account.Login.as_view(), name="login"),
    path("logout/", without_role(auth.LogoutView.as_view()), name="logout"),
    path("account/password/", account.Password.as_view(), name="password"),
    path("account/tokens/", account.tokens, name="tokens"),
    path("account/tokens/<int:pk>/revoke/", account.revoke_token, name="revoke-token"),
    path("metrics", metrics),
    path("", include("dashboard.urls")),
]
handler400 = "miehisto_web.errors.bad_request"
handler403 = "miehisto_web.errors.forbidden"
handler404 = "miehisto_web.errors.not_found"
handler500 = "miehisto_web.errors.fault"
