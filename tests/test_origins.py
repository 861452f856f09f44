"""An image that came from elsewhere: who may restore it, and what becomes of the service that it tells of."""

from typing import Any

import pytest

from images import archives, operations, origins
from images.models import Image
from services.models import AuditEvent, Job, Node, Service, new_id
from services.problems import Problem
from tests.rows import made_service, member, recorded_image, stopped_service
from worker.runmh import launch

pytestmark = pytest.mark.django_db(transaction=True)

SPEC: dict[str, Any] = {
    "argv": ["/bin/true"],
    "user": "nobody",
    "group": "",
    "cwd": "/",
    "env": {},
    "binds": [],
}


def imported(name: str = "shop", service_id: str = "", spec: dict[str, Any] | None = None) -> Image:
    """Return the row of an image as an import leaves it."""
    image = recorded_image(Service(id=service_id or new_id(), node=Node.objects.local()))
    image.manifest = {
        "spec": spec or SPEC,
        "origin": {"imported_by": "root", "from": {"service_name": name}},
    }
    image.save()
    return image


def refusal(image: Image, actor: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        operations.request_restore(image, actor=actor, source="api")
    return caught.value


def test_only_an_admin_restores_what_was_imported() -> None:
    image = imported()
    for role in ("viewer", "operator"):
        assert refusal(image, member(role)).code == "not_allowed"
    assert Service.objects.count() == Job.objects.count() == 0
    job = operations.request_restore(image, actor=member("admin"), source="api")
    assert job.service and (job.service.name, job.service.argv) == ("shop", SPEC["argv"])


def test_an_operator_restores_what_was_dumped_here() -> None:
    image = imported()
    image.manifest = {"spec": SPEC}
    image.save()
    assert operations.request_restore(image, actor=member("operator"), source="api")


def test_a_name_that_is_taken_gets_a_number() -> None:
    made_service("shop")
    made_service("shop-2")
    job = operations.request_restore(imported(), actor="root", source="manage")
    assert job.service and job.service.name == "shop-3"


@pytest.mark.parametrize("name", ["", "../etc", "a" * 64, "x\n"])
def test_a_name_that_is_none_is_left_away(name: str) -> None:
    job = operations.request_restore(imported(name), actor="root", source="manage")
    assert job.service and job.service.name == ""


def test_an_image_that_claims_to_be_of_another_service_here() -> None:
    """Its row would show one command, and another would run."""
    service = made_service("bank", argv=["/bin/bank"])
    assert refusal(imported(service_id=service.pk), "root").code == "service_differs"


def limited_service() -> Service:
    """Return a service that is what SPEC says, with a limit."""
    service = stopped_service("bank")
    Service.objects.filter(pk=service.pk).update(**SPEC, limits={"memory": 1 << 20})
    service.refresh_from_db()
    return service


@pytest.mark.parametrize(
    ("of_the_image", "different"),
    [
        ({}, "limits"),
        ({"limits": {"memory": 2 << 20}}, "limits"),
        ({"limits": {"memory": 1 << 20}, "privileges": {"cap_add": ["SYS_ADMIN"]}}, "privileges"),
        ({"limits": {"memory": 1 << 20}, "data": ["/etc"]}, "data"),
        ({"limits": {"memory": 1 << 20}, "carry": ["/etc"]}, "carry"),
    ],
)
def test_an_image_of_the_same_command_with_other_rights(of_the_image: dict[str, Any], different: str) -> None:
    service = limited_service()
    problem = refusal(imported(service_id=service.pk, spec={**SPEC, **of_the_image}), "root")
    assert (problem.code, problem.details["different"]) == ("service_differs", [different])
    assert f"(by its {different})" in problem.message


def test_an_image_keeps_the_limits_that_a_policy_gave_it_elsewhere() -> None:
    service = limited_service()
    spec = {**SPEC, "data": [], "limits": {"memory": 1 << 20, "tasks": 9}}
    assert operations.request_restore(imported(service_id=service.pk, spec=spec), actor="root", source="api")


BY_NAME: dict[str, Any] = {**SPEC, "argv": ["shop", "-p", "80"], "cwd": "/srv"}


@pytest.mark.parametrize(
    ("of_the_service", "of_the_image", "same"),
    [
        ({}, {"argv": ["/usr/bin/shop", "-p", "80"]}, True),
        ({"argv": ["/usr/bin/shop", "-p", "80"]}, {}, True),
        ({"env": {"PATH": "/opt:bin:"}}, {"argv": ["/srv/bin/shop", "-p", "80"]}, True),
        ({"env": {"PATH": "/opt:bin:"}}, {"argv": ["/usr/bin/shop", "-p", "80"]}, False),
        ({}, {"argv": ["/usr/bin/shop", "-p", "81"]}, False),
        ({}, {"argv": ["/usr/bin/shop"]}, False),
        ({}, {"argv": ["/usr/bin/bank", "-p", "80"]}, False),
        ({}, {"argv": ["/tmp/shop", "-p", "80"]}, False),
        ({}, {"argv": ["/usr/bin/../../tmp/shop", "-p", "80"]}, False),
        ({}, {"argv": ["/usr/bin/x/shop", "-p", "80"]}, False),
        ({}, {"argv": ["bank", "-p", "80"]}, False),
        ({"env": {"PATH": "/opt:"}}, {"argv": ["/srv/./shop", "-p", "80"]}, True),
        ({"argv": ["shop"]}, {"argv": []}, False),
        ({}, {"argv": "shop -p 80"}, False),
    ],
)
def test_an_image_whose_command_has_the_path_that_a_policy_gave_it(
    of_the_service: dict[str, Any], of_the_image: dict[str, Any], same: bool
) -> None:
    """It runs what the service's word stands for, and no other program of that name."""
    row = BY_NAME | of_the_service
    service = stopped_service("shop")
    Service.objects.filter(pk=service.pk).update(**row)
    image = imported(service_id=service.pk, spec={**BY_NAME, "env": row["env"], **of_the_image})
    if same:
        assert operations.request_restore(image, actor="root", source="api")
    else:
        assert refusal(image, "root").details["different"] == ["argv"]


def test_a_command_is_looked_for_where_a_supervisor_does() -> None:
    assert origins.DEFAULT_PATH == launch.DEFAULT_PATH


def test_an_export_and_an_import_are_asked_for_by_operators_and_are_on_the_record() -> None:
    image = recorded_image(made_service())
    with pytest.raises(Problem):
        archives.request_export(image, actor=member("viewer"), source="api")
    with pytest.raises(Problem):
        archives.request_import(node=image.node, file="x", actor=member("viewer"), source="api")
    operator = member("operator")
    exported = archives.request_export(image, recipients=["age1x"], actor=operator, source="api")
    asked = archives.request_import(node=image.node, file="x.tar.zst", actor=operator, source="api")
    rows = AuditEvent.objects.filter(actor=operator.username).values_list(
        "action", "target_kind", "target_id"
    )
    assert list(rows) == [
        ("import_image", "node", image.node.name),
        ("export_image", "image", image.pk),
    ]
    assert (exported.image_id, asked.image_id) == (image.pk, "")
    with pytest.raises(Problem) as caught:
        operations.request_delete(image, actor="root", source="manage", force=True)
    assert caught.value.code == "image_in_use"


@pytest.mark.parametrize(
    "file", ["", "../x", "/etc/shadow", "a/b", ".hidden", "-x", "x\0", "x" * 300, "ä", "x\n"]
)
def test_a_path_is_no_name_of_an_archive(file: str) -> None:
    image = recorded_image(made_service())
    node = image.node
    with pytest.raises(Problem) as caught:
        archives.request_import(node=node, file=file, actor="root", source="manage")
    assert caught.value.code == "bad_input"
    if file:
        with pytest.raises(Problem):
            archives.request_import(node=node, file="x", identity=file, actor="root", source="manage")
        with pytest.raises(Problem):
            archives.request_export(image, file=file, actor="root", source="manage")
