"""What rendered objects must hold before anyone applies them; Hera checks none of it.

Names that Kubernetes and Argo take, references that lead somewhere, a size that etcd stores. Limits:
https://github.com/argoproj/argo-workflows/blob/main/workflow/validate/validate.go
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from steps.errors import UsageError

_LONGEST = {
    "WorkflowTemplate": 57,
    "ClusterWorkflowTemplate": 57,
    "CronWorkflow": 52,
    "ClusterRoleBinding": 253,
}
"""Of a name: runs add a suffix of six characters to a template's, of eleven to a schedule's."""
_MOST_BYTES = 1_000_000  # etcd takes 1.5 MB, and a run's status comes on top
_DNS = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_TEMPLATE = re.compile(r"[a-zA-Z][-a-zA-Z0-9]{0,127}")
_TAG = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PARAMETER = re.compile(r"workflow\.parameters\.([-\w]+)")
_OTHER_TAG = re.compile(r"(workflow|tasks|outputs|inputs|node|pod)\.[-\w.]+|retries")
"""What Argo replaces beside parameters; any other tag is a slip, and would stand in the pod as it is."""
_NEEDED = re.compile(r"([-a-zA-Z0-9]+)\.[A-Z]\w+")


def check(objects: Iterable[Mapping[str, Any]]) -> None:
    """Raise UsageError with everything that is wrong with the objects, each named."""
    every = list(objects)
    problems = [
        f"{each['kind']} {each['metadata'].get('name')}: {problem}"
        for each in every
        for problem in _faults(each)
    ]
    names = Counter((each["kind"], each["metadata"]["name"]) for each in every)
    problems += [
        f"{kind} {name}: there are {n} of it" for (kind, name), n in names.items() if n > 1
    ]
    if problems:
        raise UsageError("\n  ".join(problems))


def _faults(each: Mapping[str, Any]) -> Iterator[str]:
    name = each["metadata"]["name"]
    longest = _LONGEST.get(each["kind"], 63)
    if not _DNS.fullmatch(name) or len(name) > longest:
        yield f"not a name of at most {longest} small letters, digits and dashes"
    if len(json.dumps(each)) > _MOST_BYTES:
        yield f"larger than {_MOST_BYTES:,} bytes"
    if each["kind"] in ("WorkflowTemplate", "ClusterWorkflowTemplate"):
        yield from _template_faults(each["spec"])


def _template_faults(spec: Mapping[str, Any]) -> Iterator[str]:
    templates = {template["name"]: template for template in spec["templates"]}
    if len(templates) < len(spec["templates"]):
        yield "two templates have one name"
    asked = [spec["entrypoint"], *(hook["template"] for hook in spec.get("hooks", {}).values())]
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for name, template in templates.items():
        if not _TEMPLATE.fullmatch(name):
            yield f"{name!r} is not a template's name: letters, digits and dashes, a letter first"
        tasks = [task["name"] for task in template.get("dag", {}).get("tasks", [])]
        for task in template.get("dag", {}).get("tasks", []):
            asked.append(task["template"])
            for need in _NEEDED.findall(task.get("depends", "")):
                if need not in tasks:
                    yield f"{task['name']} depends on {need}, which is no task"
        for mount in template.get("container", {}).get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{name} mounts {mount['name']}, which is no volume"
    for name in asked:
        if name not in templates:
            yield f"there is no template {name!r}"
    declared = {parameter["name"] for parameter in spec["arguments"]["parameters"]}
    for text in sorted(set(_texts(spec))):
        for tag in _TAG.findall(text):
            names = _PARAMETER.findall(tag)
            for name in sorted(set(names) - declared):
                yield f"there is no parameter {name!r}"
            if not (names or tag.startswith("=") or _OTHER_TAG.fullmatch(tag)):
                yield f"{{{{{tag}}}}} is no tag that Argo knows, in {text!r}"
        if "{{" in _TAG.sub("", text):
            yield f"a tag of Argo's begins with {{{{ and has no end, in {text!r}"


def _texts(value: Any) -> Iterator[str]:
    """All text in the object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
