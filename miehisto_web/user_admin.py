"""Django's admin for users and roles: what is changed there goes on the audit record. It knows no service."""

from typing import TYPE_CHECKING

from django.contrib import admin
from django.contrib.auth import admin as auth
from django.contrib.auth.models import Group, User

from services.admin import Recorded

if TYPE_CHECKING:  # Django's own class takes no parameters
    UserAdmin = auth.UserAdmin[User]
else:
    UserAdmin = auth.UserAdmin

admin.site.unregister([User, Group])


@admin.register(User)
class Users(Recorded, UserAdmin):
    target_kind = "user"


@admin.register(Group)
class Roles(Recorded, auth.GroupAdmin):
    target_kind = "role"
