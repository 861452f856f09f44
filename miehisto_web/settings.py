"""Django's settings, read once from the environment; described.py says what each is for."""

import os
import shutil
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

from environs import Env

from miehisto_web.addresses import proxies
from miehisto_web.environment import database_from_url, host_of_bind, is_loopback, newest_tini, secret_key

BASE_DIR = Path(__file__).resolve().parent.parent
PRIVATE_PREFIX = Path("/opt/miehisto/bin")

env = Env()
# An empty text means the default, for numbers and switches too.
for _name in [name for name, value in os.environ.items() if name.startswith("MIEHISTO_") and not value]:
    del os.environ[_name]

# --- Miehistö -------------------------------------------------------------------------------------
MIEHISTO_STATE_DIR = Path(env.str("MIEHISTO_STATE_DIR", "") or "/var/lib/miehisto").absolute()
MIEHISTO_RUN_DIR = Path(env.str("MIEHISTO_RUN_DIR", "") or "/run/miehisto").absolute()
MIEHISTO_LOG_DIR = Path(env.str("MIEHISTO_LOG_DIR", "") or "/var/log/miehisto").absolute()
MIEHISTO_BIND = env.str("MIEHISTO_BIND", "") or "127.0.0.1:14444"
MIEHISTO_NODE = env.str("MIEHISTO_NODE", "") or socket.gethostname()
MIEHISTO_USER = env.str("MIEHISTO_USER", "") or "miehisto"
MIEHISTO_START_SETTLE = env.float("MIEHISTO_START_SETTLE", 0.5)
MIEHISTO_JOB_TIMEOUT = env.float("MIEHISTO_JOB_TIMEOUT", 600.0)
MIEHISTO_TAKE_OVER_TIMEOUT = env.float("MIEHISTO_TAKE_OVER_TIMEOUT", 60.0)
_private_criu = PRIVATE_PREFIX / "criu"
MIEHISTO_CRIU = env.str("MIEHISTO_CRIU", "") or (
    str(_private_criu) if _private_criu.exists() else shutil.which("criu") or ""
)
MIEHISTO_TINI = env.str("MIEHISTO_TINI", "") or newest_tini(PRIVATE_PREFIX)

# --- Django ---------------------------------------------------------------------------------------
DEBUG = env.bool("MIEHISTO_DEBUG", False)
SECRET_KEY = secret_key(
    env.str("MIEHISTO_SECRET_KEY", ""),
    MIEHISTO_STATE_DIR / "database" / "secret_key",
)
ALLOWED_HOSTS = [
    "localhost",
    "127.0.0.1",
    "[::1]",
    MIEHISTO_NODE,
    *host_of_bind(MIEHISTO_BIND),
    *env.list("MIEHISTO_ALLOWED_HOSTS", []),
]
HTTPS = env.bool("MIEHISTO_HTTPS", False)
MIEHISTO_PROXIES = proxies(env.list("MIEHISTO_PROXIES", []))

INSTALLED_APPS = [
    "miehisto_web.apps.SiteAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "ninja",
    "django_htmx",
    "services",
    "images",
    "dashboard",
    # Only for its commands check_host and rescan; the site imports nothing of it.
    "worker",
]
MIDDLEWARE = [
    "miehisto_web.middleware.Front",
    "miehisto_web.middleware.StaticFiles",
    "miehisto_web.middleware.Security",
    "miehisto_web.middleware.Sessions",
    "miehisto_web.middleware.Common",
    "miehisto_web.middleware.Csrf",
    "miehisto_web.middleware.Authentication",
    "miehisto_web.middleware.Gate",
    "miehisto_web.middleware.Messages",
    "miehisto_web.middleware.FrameOptions",
    "axes.middleware.AxesMiddleware",
]
# Django looks for its own three by name and does not see that they are inherited from.
SILENCED_SYSTEM_CHECKS = ["security.W001", "security.W002", "security.W003"]
if is_loopback(MIEHISTO_BIND):
    # Cookies that go no further than this host need no HTTPS, and with it demanded nobody could log in here.
    # Elsewhere `checks.py` says what is missing.
    SILENCED_SYSTEM_CHECKS += ["security.W010"]
ROOT_URLCONF = "miehisto_web.urls"
ASGI_APPLICATION = "miehisto_web.asgi.application"
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": database_from_url(
        env.str("DATABASE_URL", "") or f"sqlite:///{MIEHISTO_STATE_DIR / 'database' / 'db.sqlite3'}"
    ),
}
if password_file := env.str("DATABASE_PASSWORD_FILE", ""):  # miehistod gives it on as PGPASSWORD
    DATABASES["default"]["PASSWORD"] = Path(password_file).read_text(encoding="utf-8").strip()
DATABASES["default"]["CONN_MAX_AGE"] = 600
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "overview"
LOGOUT_REDIRECT_URL = "login"

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_URL = "/static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
# The files are found where the packages keep them, so there is no collectstatic step to forget.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = DEBUG
WHITENOISE_ALLOW_ALL_ORIGINS = False

# --- Security -------------------------------------------------------------------------------------
# One body is at most 1 MiB; the API says so with 413.
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
CSRF_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
if HTTPS:
    # Only behind a proxy of the operator's own, which must set (and overwrite) this header.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 31_536_000

# A name that fails five times from one address waits fifteen minutes there: a stranger elsewhere cannot lock
# its owner out. `services.throttle` counts an address whatever the name.
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_LOCKOUT_CALLABLE = "miehisto_web.account.locked_out"
AXES_CLIENT_IP_CALLABLE = "miehisto_web.addresses.address_for_axes"
AXES_DISABLE_ACCESS_LOG = True  # the audit record has the logins
AXES_VERBOSE = False

# --- Celery ---------------------------------------------------------------------------------------
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", "") or f"redis+socket://{MIEHISTO_RUN_DIR / 'redis.sock'}"
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
# There are no results, so nothing of them is cleaned up each night.
CELERY_RESULT_EXPIRES = None
CELERY_RESULT_ACCEPT_CONTENT = ["json"]
# Nothing asks a worker anything over the queue, and so nobody can tell it anything.
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_TASK_ACKS_LATE = False
# Celery would close the database's connection around each job. `worker.tasks` looks whether it is still good.
CELERY_DB_REUSE_MAX = 1_000_000
CELERY_TASK_DEFAULT_QUEUE = f"node.{MIEHISTO_NODE}"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = TIME_ZONE

# --- Logging: short lines on stdout, for whoever runs miehistod -----------------------------------
_line = "json" if env.str("MIEHISTO_LOG_FORMAT", "") == "json" else "line"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "miehisto_web.log_lines.Formatter",
            "format": "%(levelname).1s %(name)s: %(message)s",
        },
        "json": {"()": "miehisto_web.log_lines.JsonFormatter"},
    },
    "handlers": {
        "stdout": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": _line},
    },
    "root": {"handlers": ["stdout"], "level": "INFO"},
    "loggers": {
        "django": {"level": "INFO"},
        # A 404 is an answer, not an event: the access log has it.
        "django.request": {"level": "ERROR"},
        # Any stranger can send a foreign host name; forty lines each time would be his to write.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "kombu": {"level": "WARNING"},
        # It tells of each login what the record has; a lockout is a warning.
        "axes": {"level": "WARNING"},
        "asyncio": {"level": "WARNING"},
    },
}
