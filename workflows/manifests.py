"""The folder that `kubectl apply -k` takes: what is in which file.

cluster/                 what only an administrator may apply
trainer/                 the same, where training runs in TrainJobs: the runtime that they refer to
base/                    the template, its claim, its service accounts
components/schedule      runs by the clock
components/events        runs that events start
components/network       no traffic but what each step needs
overlays/<name>          the base with components, or for another kind of cluster
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steps import files, flags
from steps.errors import UsageError
from steps.flags import PREFIX
from steps.params import CLUSTER, POD, marked
from workflows import (
    access,
    documents,
    events,
    lint,
    network,
    schedule,
    storage,
    training_runtime,
    values,
)
from workflows.argo import SUMMARY, workflow_template
from workflows.objects import OWN_LABELS, kubernetes_object
from workflows.pipeline import SFT, SHAPING, Parameter, Pipeline
from workflows.settings import Gpu, Network, Settings
from workflows.storage import CLAIM
from workflows.unattended import refusals_of_defaults

Objects = list[dict[str, Any]]
Folder = dict[str, Objects]
"""Objects by the name of their file."""

HEADER = "# Rendered by `sft render`: change sft.yaml or the code, and render again.\n"


def base(settings: Settings, pipeline: Pipeline = SFT) -> Folder:
    """What a namespace needs to run the pipeline."""
    found: Folder = {}
    if settings.scope == "namespace":
        found["workflow-template.yaml"] = [workflow_template(settings, pipeline).to_dict()]
    found["access.yaml"] = access.accounts(settings, pipeline)
    if settings.storage.create and not settings.storage.per_run:
        found["storage.yaml"] = [storage.claim(settings)]
    return found


def cluster(settings: Settings, pipeline: Pipeline = SFT) -> Folder:
    """What belongs to no namespace; empty where nothing does."""
    found: Folder = {}
    if settings.namespace:
        found["namespace.yaml"] = [namespace(settings)]
    if settings.scope == "cluster":
        found["workflow-template.yaml"] = [workflow_template(settings, pipeline).to_dict()]
    if roles := access.cluster_roles(settings, pipeline):
        found["access.yaml"] = roles
    return found


def trainer(settings: Settings, pipeline: Pipeline = SFT) -> Folder:
    """What TrainJobs need of the cluster; empty where no step submits one."""
    if not access.any_submits(pipeline, settings):
        return {}
    return {"training-runtime.yaml": [training_runtime.runtime(settings)]}


def namespace(settings: Settings) -> dict[str, Any]:
    """The namespace, which lets in no pod that is not restricted."""
    made = kubernetes_object("Namespace", settings.namespace, settings, cluster_scoped=True)
    made["metadata"]["name"] = settings.namespace
    made["metadata"]["labels"] |= {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")
    }
    return made


def components(settings: Settings, pipeline: Pipeline = SFT) -> dict[str, Folder]:
    """What may be added to the base: those that the settings ask for, and the network policies."""
    found: dict[str, Folder] = {}
    if settings.schedule:
        found["schedule"] = {
            "cron-workflow.yaml": [schedule.cron_workflow(settings, settings.schedule, pipeline)]
        }
    if settings.events:
        found["events"] = {"events.yaml": events.objects(settings, settings.events, pipeline)}
    found["network"] = {"network-policies.yaml": network.policies(settings, pipeline)}
    return found


OVERLAYS = {"schedule": "schedule", "events": "events", "hardened": "network"}
"""Component by the overlay that adds it to the base."""


def single_node(settings: Settings, pipeline: Pipeline = SFT) -> Settings:
    """The same for one node without a GPU: a laptop's cluster, or a first look."""
    small = dict(zip(POD, (0, "1", "4Gi"), strict=True))
    own, _ = values.by_name(pipeline, settings.parameters)
    every = pipeline.parameters()
    apart = {each.name for each in every if _is_of_trainjobs(each)}
    return settings.model_copy(
        update={
            "scope": "namespace",
            "launcher": "local",
            "gpu": Gpu(tolerations=[], shared_memory="1Gi"),
            "scratch": "5Gi",
            "storage": settings.storage.model_copy(
                update={"access_mode": "ReadWriteOnce", "size": "20Gi", "storage_class": ""}
            ),
            "parameters": {name: value for name, value in own.items() if name not in apart}
            | {each.name: small[each.field_name] for each in every if each.field_name in small},
        }
    )


def _is_of_trainjobs(parameter: Parameter) -> bool:
    """Whether only a TrainJob's pods can serve the parameter, and not a training in the step's own."""
    trains = "launcher" in parameter.step.params.model_fields
    return trains and marked(parameter.field, CLUSTER) and parameter.field_name not in POD


def refuse_impossible(settings: Settings, pipeline: Pipeline = SFT) -> None:
    """Raise UsageError for settings that fit together in no cluster, or name what is not there."""
    problems = list(_names_of_nothing(settings, pipeline))
    alone = settings.storage.access_mode != "ReadWriteMany"
    if access.any_submits(pipeline, settings):
        if alone:
            problems.append(
                f"storage.access_mode {settings.storage.access_mode} serves one node, but launcher "
                "trainjob trains in pods on others: take ReadWriteMany, or launcher local"
            )
        if settings.cluster_auth == "service-account" and not settings.namespace:
            problems.append(
                "cluster_auth service-account needs a namespace: the ClusterRoleBinding of the train "
                "step names it"
            )
    if settings.storage.per_run and not settings.storage.create:
        problems.append(
            "storage.per_run makes a claim for each run: storage.create cannot be false"
        )
    problems += [
        f"{place}.{key}: set by Argo or by the pipeline, which find their pods by it"
        for place, given in (("labels", settings.labels), ("annotations", settings.annotations))
        for key in given
        if key in OWN_LABELS or key.partition("/")[0].endswith("workflows.argoproj.io")
    ]
    if len(set(settings.claims)) < len(settings.claims):
        problems.append("claims: one is named twice")
    if not settings.storage.per_run and storage.name(settings) in settings.claims:
        # Two volumes of one claim keep a pod from starting.
        problems.append(
            f"claims: {storage.name(settings)} holds the runs, and is mounted as such anyway"
        )
    by_place = {"": settings.parameters}
    if settings.schedule:
        by_place["schedule."] = settings.schedule.parameters
    if settings.events:
        by_place["events."] = settings.events.parameters
    problems += [
        f"{place}parameters.{name}: set {own} itself, for the pods' shape follows it"
        for place, parameters in by_place.items()
        for name in parameters
        for own in SHAPING
        if name.replace("-", "_").endswith(own)
    ]
    problems += [
        f"{place}parameters.{name}: only the pods of a TrainJob have it: take launcher trainjob, or "
        "leave it out"
        for place, parameters in by_place.items()
        for name in _of_trainjobs(settings, pipeline, parameters)
    ]
    problems += [f"parameters: {told}" for told in refusals_of_defaults(settings, pipeline)]
    values.refuse(problems)
    # Schedule and events would tell a fault in the team's parameters as one in theirs.
    values.texts(pipeline, settings.parameters, "parameters")


def _names_of_nothing(settings: Settings, pipeline: Pipeline) -> Iterator[str]:
    """Settings by step, secret or image that would have no effect, for there is none of that name."""
    steps = {step.name for step in pipeline.steps}
    secrets = {secret.name: secret for step in pipeline.steps for secret in step.secrets}
    images = {step.image for step in pipeline.steps}
    for place, given, known in (
        ("deadlines", settings.deadlines, steps | set(Settings().deadlines)),
        ("network.ports", settings.network.ports, steps | set(Network().ports) | {SUMMARY, CLAIM}),
        ("secrets", settings.secrets, set(secrets)),
        ("images.digests", settings.images.digests, images),
    ):
        for name in sorted(set(given) - known):
            yield f"{place}.{name}: there is no {name}; known: {', '.join(sorted(known))}"
    keys = {key: name for name, secret in secrets.items() for key in secret.keys}
    for name in sorted(set(settings.env) & set(keys)):
        yield f"env.{name}: comes from the secret {settings.secret(keys[name])}; put it there"
    for name in sorted(settings.env):
        if name.startswith(PREFIX):
            yield f"env.{name}: carries a parameter of the steps; set it under parameters"


def _of_trainjobs(
    settings: Settings, pipeline: Pipeline, parameters: Mapping[str, Any]
) -> list[str]:
    """Names of parameters that the settings give to runs whose training has no TrainJob."""
    assigned, _ = values.assign(pipeline, parameters)
    models = {}
    for step in pipeline.steps:
        if "launcher" in step.params.model_fields:
            own = {**assigned[step.name], "launcher": settings.launcher}
            if model := flags.validate(step.params, own, partial=True)[0]:
                models[step.name] = model
    return [parameter.name for parameter in values.of_trainjobs(pipeline, models)]


def part(settings: Settings, overlay: str | None, pipeline: Pipeline = SFT) -> Objects:
    """The objects of an overlay; without one, of the base and all that the settings ask for.

    Raises UsageError where there is no such overlay, or the settings leave nothing for it.
    """
    refuse_impossible(settings, pipeline)
    if overlay == "cluster":
        folders = [cluster(settings, pipeline)]
        if not folders[0]:
            raise UsageError(
                "--overlay cluster: with these settings nothing belongs to the cluster"
            )
    elif overlay == "trainer":
        folders = [trainer(settings, pipeline)]
        if not folders[0]:
            raise UsageError("--overlay trainer: with these settings there are no TrainJobs")
    elif overlay == "single-node":
        folders = [base(single_node(settings, pipeline), pipeline)]
    else:
        made = components(settings, pipeline)
        wanted = [OVERLAYS[overlay]] if overlay in OVERLAYS else []
        if overlay is None:
            wanted = [name for name in ("schedule", "events") if name in made]
        elif not wanted and overlay != "base":
            known = ", ".join(["base", "cluster", "trainer", *OVERLAYS, "single-node"])
            raise UsageError(f"--overlay: {overlay!r} is none of {known}")
        if missing := [name for name in wanted if name not in made]:
            raise UsageError(f"--overlay {overlay}: the settings have no {missing[0]}")
        folders = [base(settings, pipeline), *(made[name] for name in wanted)]
    objects = [each for folder in folders for group in folder.values() for each in group]
    lint.check(objects)
    return objects


def tree(settings: Settings, pipeline: Pipeline = SFT) -> dict[str, str]:
    """The whole folder: text by path. Raises UsageError before anything is written."""
    refuse_impossible(settings, pipeline)
    parts: dict[str, Folder] = {"base": base(settings, pipeline)}
    if for_cluster := cluster(settings, pipeline):
        parts["cluster"] = for_cluster
    if for_trainer := trainer(settings, pipeline):
        parts["trainer"] = for_trainer
    made = components(settings, pipeline)
    parts |= {f"components/{name}": folder for name, folder in made.items()}
    parts["overlays/single-node"] = base(single_node(settings, pipeline), pipeline)
    for folder in parts.values():
        lint.check(each for objects in folder.values() for each in objects)
    texts = {
        f"{path}/{name}": HEADER + documents.to_yaml(objects)
        for path, folder in parts.items()
        for name, objects in folder.items()
    }
    for path, folder in parts.items():
        texts[f"{path}/kustomization.yaml"] = _kustomization(
            kind="Component" if path.startswith("components/") else "Kustomization",
            resources=list(folder),
        )
    for overlay, component in OVERLAYS.items():
        if component in made:
            texts[f"overlays/{overlay}/kustomization.yaml"] = _kustomization(
                resources=["../../base"], components=[f"../../components/{component}"]
            )
    return texts


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the folder; files and folders of an earlier rendering that are no longer in it are removed."""
    for path in list(folder.rglob("*.yaml")):
        ours = path.read_bytes().startswith(HEADER.encode())
        if ours and str(path.relative_to(folder)) not in texts:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    for name, text in texts.items():
        files.write(folder / name, text)


def _kustomization(
    *,
    resources: Iterable[str],
    components: Iterable[str] = (),
    kind: str = "Kustomization",
) -> str:
    version = "v1alpha1" if kind == "Component" else "v1beta1"
    content = {
        "apiVersion": f"kustomize.config.k8s.io/{version}",
        "kind": kind,
        "resources": list(resources),
        "components": list(components) or None,
    }
    return HEADER + documents.to_yaml([content])
