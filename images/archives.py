"""Images that leave a node and come to one, as archives. It reads no files.

An archive lies in a folder of the node that is root's alone, and is called by its name there: the site can
neither read nor write one, and nobody makes root's worker write anywhere else.
"""

from django.conf import settings
from django.db import transaction

from images.models import Image
from images.operations import request
from services import validation
from services.actors import Actor, require_operator
from services.models import Job, Node
from services.operations import new_job
from services.problems import bad_input
from services.states import JobKind

MOST_RECIPIENTS = 20


def folder() -> str:
    """Return where archives lie on this node."""
    return str(settings.MIEHISTO_STATE_DIR / "archives")


def request_export(
    image: Image,
    *,
    file: str = "",
    recipients: list[str] | None = None,
    gpg_recipients: list[str] | None = None,
    actor: Actor,
    source: str,
) -> Job:
    """Ask for an archive of an image in the node's folder of archives.

    file: its name there, "" for the image's id. recipients: age's; gpg_recipients: GnuPG's; nobody for an
    archive that is not encrypted. Raises Problem bad_input, image_in_use.
    """
    require_operator(actor)
    options = {
        "file": _file(file, "file") if file else "",
        "recipients": _recipients(recipients or [], "recipients"),
        "gpg_recipients": _recipients(gpg_recipients or [], "gpg_recipients"),
    }
    clash = {JobKind.DELETE_IMAGE}
    return request(JobKind.EXPORT_IMAGE, image, actor=actor, source=source, clash=clash, options=options)


def request_import(*, node: Node, file: str, identity: str = "", actor: Actor, source: str) -> Job:
    """Ask for an image of an archive that lies in the node's folder of archives.

    file: its name there. identity: the name there of the file with age's secret key, "" for none.
    """
    require_operator(actor)
    options = {"file": _file(file, "file"), "identity": _file(identity, "identity") if identity else ""}
    with transaction.atomic():
        return new_job(JobKind.IMPORT_IMAGE, node=node, options=options, actor=actor, source=source)


def _file(value: object, field: str) -> str:
    name = validation.text(value, field, limit=200)
    if not validation.FILE.match(name):
        raise bad_input(
            f"The value of {field} must be the name of a file, not {name[:80]!r}.",
            f"Use letters, digits, dots, dashes and underscores; it is looked for in {folder()}.",
            field=field,
        )
    return name


def _recipients(value: object, field: str) -> list[str]:
    if not isinstance(value, list) or len(value) > MOST_RECIPIENTS:
        raise bad_input(
            f"The value of {field} must be a list of at most {MOST_RECIPIENTS} recipients.",
            "Send for example the public key that age-keygen printed.",
            field=field,
        )
    return [validation.text(item, field, limit=4096) for item in value]
