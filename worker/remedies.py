"""What can be pressed after a failure: by its code, as data for pages and programs. Knows no pages.

Each action has a name, what its button says, and options:

- retry: ask for the same job again, with these options besides its own;
- start: start the service anew, its memory is lost;
- verify: verify the image; check: do the dry run; check_host: look at the node;
- dump: dump it once more, with these options, which somebody has to fill;
- prune: see which images of the pool can go;
- images: see the images of the service, to restore one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Action = dict[str, Any]


def _do(action: str, label: str, **options: Any) -> Action:
    return {"action": action, "label": label, "options": options}


_AGAIN = _do("retry", "Try again")
_ANEW = _do("start", "Start it anew, without its memory")
_VERIFY = _do("verify", "Verify the image")
_CHECK = _do("check", "See all that stands in the way")
_HOST = _do("check_host", "Check the node")
_PRUNE = _do("prune", "See which images can go")
_IMAGES = _do("images", "See its images, to restore one")
_SEARCH = _do("dump", "Say where the watched files are", force_irmap=[])

ACTIONS: Mapping[str, tuple[Action, ...]] = {
    # --- an option helps
    "tcp_in_flight": (
        _AGAIN,
        _do("retry", "Leave out connections that were not accepted", tcp_skip_in_flight=True),
    ),
    "connection_lost": (_AGAIN, _do("retry", "Drop the open connections", tcp_close=True)),
    "deleted_file_too_large": (_do("retry", "Take the deleted file into the image", ghost_limit="{size}"),),
    "freeze_timeout": (_CHECK, _do("retry", "Give it a minute to freeze", freeze_timeout=60)),
    "files_changed": (
        _do("retry", "Restore it with the files as they are", accept_changed_files=True),
        _ANEW,
    ),
    "file_changed": (_AGAIN, _ANEW),
    # --- what was in the way has to go first
    **dict.fromkeys(
        (
            *("port_in_use", "address_missing", "unix_socket_taken", "file_locked", "file_overmounted"),
            *("pid_taken", "session_taken", "too_many_processes", "restore_concurrent", "mount_missing"),
            *("network_lock_left", "disk_full", "out_of_memory", "inotify_limit", "link_remap_failed"),
            *("criu_timeout", "criu_died", "service_busy", "supervisor_died", "sealing_failed"),
        ),
        (_AGAIN,),
    ),
    **dict.fromkeys(
        ("file_missing", "file_kind_changed", "file_mode_changed", "file_not_opened", "lsm_mismatch"),
        (_AGAIN, _ANEW),
    ),
    **dict.fromkeys(("traced", "ptrace_denied", "unix_peer_outside"), (_CHECK, _AGAIN)),
    "inotify_handle": (_SEARCH, _CHECK, _AGAIN),
    "pool_full": (_PRUNE, _AGAIN),
    # --- the service has to be another
    **dict.fromkeys(
        (
            *("io_uring", "mptcp", "unsupported_protocol", "unsupported_socket", "unsupported_file"),
            *("unsupported_mapping", "dangling_tty", "mount_unknown"),
        ),
        (_CHECK,),
    ),
    "nested_namespace": (_CHECK, _ANEW),
    # --- the service has ended
    "service_died_with_criu": (_IMAGES, _ANEW),
    # --- the image
    **dict.fromkeys(("image_damaged", "restore_crashed"), (_VERIFY, _ANEW)),
    **dict.fromkeys(("image_version", "cpu_mismatch", "program_changed", "link_remap_used"), (_ANEW,)),
    "image_misplaced": (_AGAIN, _ANEW),
    "image_of_another": (_IMAGES, _ANEW),
    "image_missing": (_ANEW,),
    # --- the node
    **dict.fromkeys(
        (
            *("criu_too_old", "kernel_too_old", "criu_unusable", "no_criu", "network_lock_failed"),
            "needs_sys_resource",
        ),
        (_HOST,),
    ),
}


def actions(
    code: str, words: Mapping[str, str | None] | None = None, *, restoring: bool = False
) -> list[Action]:
    """Return what can be pressed after a failure with this code; empty if nothing.

    Args:
        words: what the pattern of the failure has found; a size in bytes becomes an option's number.
        restoring: a restore failed: the service can always be started anew.
    """
    found = []
    for action in ACTIONS.get(code, ()):
        options = {}
        for name, value in action["options"].items():
            size = (words or {}).get("size") if value == "{size}" else None
            # A little more than it has, for it may still be written to.
            options[name] = (int(size) >> 20) + 1 << 20 if size else value
        if "{size}" not in options.values():
            found.append({**action, "options": options})
    if restoring and _ANEW not in found:
        found.append(_ANEW)
    return found
