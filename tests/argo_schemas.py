"""The official schemas that rendered objects are held against, with every unknown field refused.

They are no part of the project: the environment variable SFT_SCHEMAS names a folder that has
argo/v3.7.18/schema.json, argo/v4.1.2/schema.json and argo/v4.1.2/full/*.yaml (api/jsonschema and
manifests/base/crds/full of argo-workflows at those tags), argo-events/schema.json (api/jsonschema
of argo-events) and trainer/kubeflow-trainer-<tag>/*.yaml (manifests/base/crds of kubeflow/trainer).
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

FOLDER = os.environ.get("SFT_SCHEMAS", "")
WORKFLOWS = "io.argoproj.workflow.v1alpha1"
EVENTS = "io.argoproj.events.v1alpha1"
EVENT_KINDS = ("EventBus", "EventSource", "Sensor")
KUBERNETES = {
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "Role": "io.k8s.api.rbac.v1.Role",
    "RoleBinding": "io.k8s.api.rbac.v1.RoleBinding",
    "ClusterRole": "io.k8s.api.rbac.v1.ClusterRole",
    "ClusterRoleBinding": "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "Namespace": "io.k8s.api.core.v1.Namespace",
}
"""Definitions of Kubernetes' own kinds inside the schema of Argo Events."""
TRAINERS = ("v2.1.0", "v2.2.1", "v2.3.0")
TRAINER_KINDS = ("TrainJob", "ClusterTrainingRuntime")


@cache
def folder() -> Path:
    """The folder of the schemas; a test that needs it is skipped where there is none."""
    if not FOLDER:
        pytest.skip("SFT_SCHEMAS names no folder with the schemas of Argo Workflows and Events")
    return Path(FOLDER)


def faults(each: Mapping[str, Any], version: str) -> list[str]:
    """What the schema of Argo `version` (`v3.7.18`, `v4.1.2`, or `crd`) has against the object."""
    kind = each["kind"]
    if kind in TRAINER_KINDS:
        return [fault for tag in TRAINERS for fault in trainer_faults(each, tag)]
    if kind in EVENT_KINDS or kind in KUBERNETES:
        name = KUBERNETES.get(kind, f"{EVENTS}.{kind}")
        validator = _defined("argo-events/schema.json", name)
    elif version == "crd":
        validator = _crd(kind)
    else:
        validator = _defined(f"argo/{version}/schema.json", f"{WORKFLOWS}.{kind}")
    return _told(validator, each)


def trainer_faults(each: Mapping[str, Any], tag: str) -> list[str]:
    """What the CRD of Kubeflow Trainer at that tag has against the object."""
    return _told(Draft202012Validator(_closed(trainer_schema(each["kind"], tag))), each)


@cache
def trainer_schema(kind: str, tag: str) -> dict[str, Any]:
    """The structural schema of that CRD, as the API server has it."""
    path = f"trainer/kubeflow-trainer-{tag}/trainer.kubeflow.org_{kind.lower()}s.yaml"
    crd = yaml.load((folder() / path).read_text(), Loader=yaml.CSafeLoader)
    found: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def _told(validator: Draft202012Validator, each: Mapping[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(each)]


@cache
def _defined(path: str, name: str) -> Draft202012Validator:
    schema = _schema(path)
    return Draft202012Validator({**schema, "$ref": f"#/definitions/{name}"})


@cache
def _schema(path: str) -> dict[str, Any]:
    definitions = json.loads((folder() / path).read_text())["definitions"]
    if path.startswith("argo-events/"):
        # They are written as text or number (amount.go, int64_or_string.go), which the generator of
        # the schema does not know.
        definitions[f"{EVENTS}.Amount"] = {"type": ["number", "string"]}
        definitions[f"{EVENTS}.Int64OrString"] = {"type": ["integer", "string"]}
        # A resource is any object; the one that we create is held against its own schema.
        definitions[f"{EVENTS}.K8SResource"] = {"type": "object", "x-open": True}
    return {"definitions": {name: _closed(each) for name, each in definitions.items()}}


@cache
def _crd(kind: str) -> Draft202012Validator:
    path = folder() / f"argo/v4.1.2/full/argoproj.io_{kind.lower()}s.yaml"
    crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return Draft202012Validator(_closed(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))


def _closed(schema: Any) -> Any:
    """The schema with no place for fields that it does not name."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(each) for name, each in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-open")
    if isinstance(schema.get("properties"), dict) and not is_open:
        found.setdefault("additionalProperties", False)
    return found
