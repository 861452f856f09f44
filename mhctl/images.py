"""The verbs of `mhctl image`."""

from __future__ import annotations

from mhctl.client import segment
from mhctl.jobs import client_of, describe, make_job
from mhctl.text import moment, plain, put, put_json, size, table, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mhctl.commandline import Parsed

    Json = dict[str, Any]


def path_of(parsed: Parsed, tail: str = "") -> str:
    """The API's path of the image that the first operand names."""
    return f"images/{segment('image', parsed.operands[0])}{tail}"


def image_id(job: Json) -> str:
    """What a job about an image prints."""
    return str(job.get("image"))


def list_images(parsed: Parsed) -> None:
    """`mhctl image list`."""
    images = client_of(parsed).rows("images")
    if parsed.options["json"]:
        put_json(images)
        return
    rows = [
        [
            str(image["object_id"]),
            value(image.get("comm")),
            size(image.get("page_size")),
            moment(image.get("ctime")),
        ]
        for image in images
    ]
    heads = ["OBJECT_ID", "COMM", "PAGE_SIZE", "CTIME"]
    if any(image.get("carried") for image in images):
        heads.append("CARRIES")
        for row, image in zip(rows, images, strict=True):
            row.append(" ".join(map(plain, image.get("carried") or [])) or "memory only")
    put(table(heads, rows, least={"OBJECT_ID": 32, "COMM": 12, "PAGE_SIZE": 10}))


def show(parsed: Parsed) -> None:
    """`mhctl image show`."""
    client = client_of(parsed)
    image = client.call("GET", path_of(parsed))
    from mhctl.looking import contents_of, image_contents

    contents = contents_of(client, path_of(parsed, "/contents"))
    if parsed.options["json"]:
        put_json({**image, "contents": contents})
        return
    carried = ", ".join(map(plain, image.get("carried") or []))
    shown = {
        **image,
        "page_size": size(image.get("page_size")),
        "size": size(image.get("size")),
        "carried": carried or "memory only; the files on the disk must be as they were at the dump",
    }
    put(describe(shown) + image_contents(contents))


def compare(parsed: Parsed) -> None:
    """`mhctl image compare`."""
    from mhctl.looking import compare_images

    compare_images(parsed)


def environment(parsed: Parsed) -> None:
    """`mhctl image environment`."""
    from mhctl import looking

    looking.environment(parsed)


def verify(parsed: Parsed) -> None:
    """`mhctl image verify`."""
    make_job(parsed, "POST", path_of(parsed, "/verify"), body={}, result=image_id)


def delete(parsed: Parsed) -> None:
    """`mhctl image delete`."""
    query = {"force": 1} if parsed.options["force"] else None
    make_job(parsed, "DELETE", path_of(parsed), query=query, result=image_id)


def export(parsed: Parsed) -> None:
    """`mhctl image export`."""
    import sys

    from mhctl import archives

    options = parsed.options
    target = parsed.operands[1] if parsed.operands[1:] else ""
    archives.check_target(target, as_json=options["json"], no_wait=options["no_wait"])
    body = {"recipients": options["recipient"], "gpg_recipients": options["gpg_recipient"]}

    def result(job: Json) -> str:
        warning = (job.get("result") or {}).get("warning")
        if warning:
            sys.stderr.write(f"mhctl: warning: {plain(str(warning))}\n")
        return archives.deliver(client_of(parsed), job, target)

    make_job(parsed, "POST", path_of(parsed, "/export"), body=body, result=result)


def import_image(parsed: Parsed) -> None:
    """`mhctl image import`."""
    import sys

    from mhctl.archives import Staged

    client, options = client_of(parsed), parsed.options
    staged = Staged(client, str(client.call("GET", "archives").get("folder")))

    def result(job: Json) -> str:
        if (job.get("result") or {}).get("was_there"):
            sys.stderr.write("mhctl: this image is in the pool already; nothing was changed\n")
        return image_id(job)

    def work() -> None:
        body = {"file": staged.name_of(parsed.operands[0], no_wait=options["no_wait"])}
        if options["identity"] is not None:
            body["identity"] = staged.name_of(options["identity"], no_wait=options["no_wait"])
        make_job(parsed, "POST", "images", body=body, result=result)

    staged.during(work)


def rename(parsed: Parsed) -> None:
    """`mhctl image rename`."""
    image = client_of(parsed).call("PATCH", path_of(parsed), body={"name": parsed.operands[1]})
    if parsed.options["json"]:
        put_json(image)
    else:
        put(f"{image['object_id']}\n")


VERBS: dict[str, Callable[[Parsed], None]] = {
    "list": list_images,
    "show": show,
    "compare": compare,
    "environment": environment,
    "verify": verify,
    "delete": delete,
    "export": export,
    "import": import_image,
    "rename": rename,
}
