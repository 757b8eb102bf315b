"""The DAG on Argo Workflows: one function a box of the picture, settings in, Hera objects out.

Every parameter is the workflow's: a step's command reads it as `{{workflow.parameters.<name>}}`, an
argument each and no shell, so quotes, newlines and JSON arrive as they were given. What only Argo
knows (its tags, pods, retries) stays in this module.

workflow_template        the object, and of its spec what holds for all pods
parameters, volumes      spec.arguments, spec.volumes
container                templates dataset-download, train, evaluate, register
picture                  template pipeline, the DAG
summary, stop, ending    templates summary, stop-training, and end, the DAG of both
claim                    template claim, where each run has a claim of its own
"""

from collections.abc import Mapping
from typing import Any

from hera.workflows import (
    DAG,
    Artifact,
    ClusterWorkflowTemplate,
    Container,
    Counter,
    EmptyDirVolume,
    Env,
    ExistingVolume,
    FieldEnv,
    Gauge,
    Label,
    NoneArchiveStrategy,
    Parameter,
    Resource,
    Resources,
    RetryStrategy,
    SecretEnv,
    SecretEnvFrom,
    Task,
    WorkflowTemplate,
)
from hera.workflows import models as m

from steps import flags
from steps.params import POD, choices, may_hold_secret, type_name
from steps.secrets import Secret
from steps.train.params import (
    COUNT,
    KUBERNETES_CREDENTIALS,
    QUANTITY,
    TRAIN_ENV,
    TRAIN_ENV_PREFIX,
    CertificateMap,
    Toleration,
    WorkerPod,
)
from workflows import access, security, storage, training_runtime, values
from workflows.documents import to_yaml
from workflows.objects import labels
from workflows.pipeline import SFT, SHAPING, Pipeline, Step, parameter_name
from workflows.settings import Settings, go_duration, seconds
from workflows.storage import CLAIM

VOLUME, OUTPUTS, CLAIMS = "/volume", "/outputs", "/claims"
RUN_FOLDER = "runs/{{workflow.name}}"
REPORT = f"{VOLUME}/{RUN_FOLDER}/report.html"

PIPELINE, SUMMARY = "pipeline", "summary"
"""Templates that are no step: the DAG and the exit handler."""
END, STOP = "end", "stop-training"
"""Where a step submits TrainJobs: the exit handler of two parts, and its second."""

# 75 is the steps' own word for "try again"; -1, 137 and 143 are pods that were lost, evicted or
# killed. What ran out of memory or past its deadline would do so again, and so would a pod that
# cannot be made, which has no exit code either.
RETRY_WHEN = (
    "asInt(lastRetry.exitCode) == 75 || (asInt(lastRetry.exitCode) in [-1, 137, 143] "
    # A message may end with the step's last lines: only its beginning is Argo's own word.
    "&& not (lastRetry.message matches '^(main: )?(OOMKilled|DeadlineExceeded)|^Pod was active on the node longer') "
    "&& not (asInt(lastRetry.exitCode) == -1 "
    "&& lastRetry.message matches '^Error applying PodSpecPatch|is invalid|PodSecurity'))"
)

_LEAST = {"gpu": "0", "cpu": "500m", "memory": "512Mi"}
"""What a pod gets whose size is none: enough for its step to refuse it."""

_CA_FILE = "/etc/sft/ca/ca.crt"
# What the steps' libraries read: OpenSSL and httpx, requests, boto3, skopeo and other Go programs.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")


def workflow_template(
    settings: Settings, pipeline: Pipeline = SFT
) -> WorkflowTemplate | ClusterWorkflowTemplate:
    """The pipeline as a WorkflowTemplate, or a ClusterWorkflowTemplate if the settings say so."""
    kind = ClusterWorkflowTemplate if settings.scope == "cluster" else WorkflowTemplate
    templates: list[Any] = [
        *([claim(settings)] if settings.storage.per_run else []),
        *(container(step, pipeline, settings) for step in pipeline.steps),
        summary(pipeline, settings),
        *(stop(step, settings) for step in pipeline.steps if access.submits(step, settings)),
    ]
    ends_training = access.any_submits(pipeline, settings)
    with kind(
        name=settings.named(pipeline.name),
        namespace=settings.namespace or None if kind is WorkflowTemplate else None,
        labels=labels(settings),
        annotations=_title_and_description(pipeline.name, pipeline.description),
        entrypoint=PIPELINE,
        arguments=parameters(settings, pipeline),
        templates=templates,
        hooks={"exit": m.LifecycleHook(template=END if ends_training else SUMMARY)},
        volumes=volumes(settings, pipeline),
        service_account_name=settings.named(access.RUN),
        security_context=m.PodSecurityContext.model_validate(security.pod(settings)),
        image_pull_secrets=[
            m.LocalObjectReference(name=name) for name in settings.images.pull_secrets
        ]
        or None,
        node_selector=settings.node_selector or None,
        tolerations=_tolerations(settings.tolerations),
        pod_priority_class_name=settings.priority_class or None,
        pod_metadata=m.Metadata(labels=labels(settings), annotations=settings.annotations or None),
        workflow_metadata=m.WorkflowMetadata(
            labels=labels(settings),
            annotations=_title_and_description(
                pipeline.title.format_map(_Tags()), pipeline.description
            ),
        ),
        synchronization=_synchronization(settings),
        metrics=run_metrics(pipeline, settings),
        pod_gc=m.PodGC(
            strategy=settings.cleanup.pods,
            delete_delay_duration=go_duration(settings.cleanup.pods_after),
        ),
        ttl_strategy=m.TTLStrategy(
            seconds_after_success=seconds(settings.cleanup.succeeded_after),
            seconds_after_failure=seconds(settings.cleanup.failed_after),
        ),
    ) as template:
        picture(pipeline, settings)
        if ends_training:
            ending()
    return template


def picture(pipeline: Pipeline, settings: Settings) -> DAG:
    """The DAG: each step after those it needs have succeeded, and what the run hands out."""
    first = [CLAIM] if settings.storage.per_run else []
    with DAG(name=PIPELINE, outputs=_run_outputs(pipeline)) as boxes:
        for name in first:
            Task(name=name, template=name)
        for step in pipeline.steps:
            needs = [pipeline.step(need).template for need in step.needs] or first
            Task(
                name=step.template,
                template=step.template,
                # A bare name would let a step run after one that was skipped.
                depends=" && ".join(f"{need}.Succeeded" for need in needs) or None,
            )
    return boxes


def container(step: Step, pipeline: Pipeline, settings: Settings) -> Container:
    """A step: its command, with every parameter as an argument and every secret as an optional key."""
    deadline = settings.deadlines.get(step.name)
    return Container(
        name=step.template,
        labels={"app.kubernetes.io/component": step.name},
        image=settings.images.reference(step.image),
        image_pull_policy=settings.images.pull_policy,
        command=["python", "-m", step.module],
        args=arguments(step, settings),
        env=environment(step, settings),
        env_from=[
            SecretEnvFrom(
                name=settings.secret(secret.name),
                optional=True,
                # A step that passes the keys on must know which they are.
                prefix=TRAIN_ENV_PREFIX if access.submits(step, settings) else None,
            )
            for secret in step.secrets
            if not secret.keys
        ]
        or None,
        outputs=outputs(step, settings),
        volume_mounts=mounts(step, settings),
        resources=None
        if own_resources(step, settings)
        else Resources(cpu_request=step.cpu, memory_request=step.memory, memory_limit=step.memory),
        pod_spec_patch=to_yaml([pod_patch(step, settings)]),
        # A template's own selector stands in place of the workflow's.
        node_selector=settings.node_selector | settings.gpu.node_selector or None
        if own_resources(step, settings)
        else None,
        tolerations=_tolerations([*settings.tolerations, *settings.gpu.tolerations])
        if own_resources(step, settings)
        else None,
        security_context=m.SecurityContext.model_validate(security.CONTAINER),
        service_account_name=access.account(step, settings),
        retry_strategy=retry(settings),
        active_deadline_seconds=str(seconds(deadline)) if deadline else None,
        metrics=step_metrics(step, pipeline, settings),
        # A failed step's last lines are its message in the UI and in `argo get`.
        termination_message_policy="FallbackToLogsOnError",
    )


def summary(pipeline: Pipeline, settings: Settings) -> Container:
    """The exit handler: prints how the run ended, what it scored, and what failed."""
    return _handler(
        pipeline.steps[-1],
        settings,
        {"runs": VOLUME, "tmp": "/tmp", "no-token": security.TOKEN},  # noqa: S108
        name=SUMMARY,
        labels={"app.kubernetes.io/component": SUMMARY},
        command=["python", "-m", "steps.report"],
        args=[
            f"--workspace={VOLUME}/{RUN_FOLDER}",
            "--status={{workflow.status}}",
            "--failures={{workflow.failures}}",
        ],
        env=_base_environment(settings),
    )


def stop(step: Step, settings: Settings) -> Container:
    """The rest of the exit handler: `argo stop` ends pods of the workflow, but not those of a TrainJob."""
    bound = _bound(step, settings)
    names = ("workspace", "run_name", "volume_claim", "volume_path", "namespace")
    places = {"tmp": "/tmp"}  # noqa: S108
    if not access.needs_token(step, settings):
        places["cluster-ca"] = security.TOKEN
    return _handler(
        step,
        settings,
        places,
        name=STOP,
        labels={"app.kubernetes.io/component": step.name},  # it may reach what the step may
        command=["python", "-m", f"{step.module}.stop"],
        args=[
            *(f"{flags.flag(name)}={bound[name]}" for name in names),
            f"--cluster-auth={settings.cluster_auth}",
            "--failures={{workflow.failures}}",
        ],
        env=[*_base_environment(settings), *_keys(KUBERNETES_CREDENTIALS, settings)],
        service_account_name=access.account(step, settings),
    )


def _handler(step: Step, settings: Settings, places: Mapping[str, str], **own: Any) -> Container:
    """A small container after the run, of a step's image, with the volumes at these places."""
    return Container(
        image=settings.images.reference(step.image),
        image_pull_policy=settings.images.pull_policy,
        volume_mounts=_mounts(places, settings),
        resources=Resources(cpu_request="100m", memory_request="256Mi", memory_limit="512Mi"),
        pod_spec_patch=to_yaml([security.EXECUTOR]),
        security_context=m.SecurityContext.model_validate(security.CONTAINER),
        retry_strategy=retry(settings),
        timeout="15m",  # also of a pod that waits for a volume that never comes
        termination_message_policy="FallbackToLogsOnError",
        **own,
    )


def ending() -> DAG:
    """The exit handler of two parts, side by side; what has succeeded has no training to stop."""
    with DAG(name=END) as boxes:
        Task(name=SUMMARY, template=SUMMARY)
        Task(name=STOP, template=STOP, when="'{{workflow.status}}' != 'Succeeded'")
    return boxes


def claim(settings: Settings) -> Resource:
    """Makes the claim of the run. It has no owner, so it outlives the workflow with the model in it."""
    return Resource(
        name=CLAIM,
        labels={"app.kubernetes.io/component": CLAIM},
        action="apply",
        manifest=to_yaml([storage.claim_of_run(settings, "{{workflow.name}}")]),
        set_owner_reference=False,
        service_account_name=settings.named(access.CLAIMS),
        pod_spec_patch=to_yaml([security.EXECUTOR_ALONE]),
        # Archived logs would bring a third container, which the patch knows nothing of.
        archive_location=m.ArtifactLocation(archive_logs=False),
        retry_strategy=retry(settings),
    )


def parameters(settings: Settings, pipeline: Pipeline) -> list[Parameter]:
    """All workflow parameters, by their contract's names, with the team's defaults."""
    team = values.texts(pipeline, settings.parameters, "parameters")
    found = []
    for parameter in pipeline.parameters():
        field = parameter.field
        default = team.get(parameter.name)
        if default is None and not field.is_required():
            default = flags.shown_default(field)
        limited = choices(field) or (("True", "False") if type_name(field) == "bool" else ())
        if parameter.field_name in SHAPING:  # these pods serve no other value
            default = getattr(settings, parameter.field_name)
            limited = (default,)
        elif parameter.name not in team and access.submits(parameter.step, settings):
            default = of_workers(settings).get(parameter.field_name, default)
        extra: dict[str, Any] = {} if default is None else {"value": default}
        if limited:
            extra["enum"] = list(limited)
        found.append(
            Parameter(
                name=parameter.name,
                description=" ".join((field.description or "").split()),
                **extra,
            )
        )
    return found


def of_workers(settings: Settings) -> dict[str, str]:
    """Parameters of a TrainJob's pods that follow from the settings unless a run says otherwise."""
    selector = settings.node_selector | settings.gpu.node_selector
    return {
        "runtime": settings.named(training_runtime.NAME),
        "gpu_resource": settings.gpu.resource,
        "node_selector": ",".join(f"{key}={value}" for key, value in selector.items()),
        "tolerations": flags.as_text([*settings.tolerations, *settings.gpu.tolerations]),
        "shm_size": settings.gpu.shared_memory,
    }


def worker_pod(settings: Settings) -> WorkerPod:
    """What a TrainJob's pods have in common with the others."""
    certificates = None
    if bundle := settings.ca_bundle:
        certificates = CertificateMap(config_map=bundle.config_map, key=bundle.key, path=_CA_FILE)
    return WorkerPod(
        service_account=settings.named(access.WORKER),
        image_pull_secrets=settings.images.pull_secrets,
        env=_base_variables(settings),
        certificates=certificates,
        env_secret=settings.secret(TRAIN_ENV.name),
        labels=labels(settings),
        annotations=settings.annotations,
        user=None if settings.platform == "openshift" else settings.user,
        scratch=settings.scratch,
    )


def tag(step: Step, field_name: str) -> str:
    """What Argo replaces by the value of a step's parameter."""
    field = step.params.model_fields[field_name]
    return f"{{{{workflow.parameters.{parameter_name(step, field_name, field)}}}}}"


def arguments(step: Step, settings: Settings) -> list[str]:
    """The step's flags: what the engine knows of the run, then its parameters."""
    return [
        *(f"{flags.flag(name)}={value}" for name, value in _bound(step, settings).items()),
        *(
            f"{flags.flag(name)}={tag(step, name)}"
            for name, field in step.params.model_fields.items()
            if not may_hold_secret(field)
        ),
    ]


def _bound(step: Step, settings: Settings) -> dict[str, str]:
    bound = {
        "workspace": f"{VOLUME}/{RUN_FOLDER}",
        "cache": f"{VOLUME}/cache",
        "outputs": OUTPUTS,
        "claims": CLAIMS,
        "run_name": "{{workflow.name}}",
        "run_uid": "{{workflow.uid}}",
        "volume_claim": _claim_name(settings),
        "volume_path": RUN_FOLDER,
    }
    if access.submits(step, settings):
        bound["namespace"] = "{{workflow.namespace}}"
        bound["worker_image"] = settings.images.reference(step.image)
        bound["worker_pod"] = worker_pod(settings).model_dump_json(exclude_defaults=True)
    return bound


def environment(step: Step, settings: Settings) -> list[Env | SecretEnv | FieldEnv]:
    """Secrets, each key optional so that the pod starts and the step says what it misses."""
    return [
        *_base_environment(settings),
        *(
            [FieldEnv(name="POD_NAME", field_path="metadata.name")]
            if access.submits(step, settings)
            else []
        ),
        *(each for secret in step.secrets for each in _keys(secret, settings)),
        *(
            Env(name=flags.variable(name), value=tag(step, name))
            for name, field in step.params.model_fields.items()
            if may_hold_secret(field)
        ),
    ]


def _keys(secret: Secret, settings: Settings) -> list[SecretEnv]:
    name = settings.secret(secret.name)
    return [
        SecretEnv(name=key, secret_name=name, secret_key=key, optional=True) for key in secret.keys
    ]


def _base_environment(settings: Settings) -> list[Env | SecretEnv | FieldEnv]:
    return [Env(name=name, value=value) for name, value in _base_variables(settings).items()]


def _base_variables(settings: Settings) -> dict[str, str]:
    # An arbitrary user has no entry in /etc/passwd, and the root file system is read-only.
    variables = {"HOME": "/tmp", "USER": "sft"}  # noqa: S108
    if settings.proxy:
        for name, value in settings.proxy.model_dump().items():
            key = name if name == "no_proxy" else f"{name}_proxy"
            if value:  # programs read one spelling or the other
                variables |= {key.upper(): value, key: value}
    if settings.ca_bundle:
        variables |= dict.fromkeys(_CA_VARIABLES, _CA_FILE)
    return variables | settings.env


def outputs(step: Step, settings: Settings) -> list[Parameter | Artifact]:
    """The step's small results, each with what stands there when it gives none."""
    found: list[Parameter | Artifact] = [
        Parameter(name=name, value_from=m.ValueFrom(path=f"{OUTPUTS}/{name}", default=default))
        for name, default in step.results.items()
    ]
    if settings.artifacts:
        found.append(
            Artifact(name="report", path=REPORT, optional=True, archive=NoneArchiveStrategy())
        )
    return found


def _run_outputs(pipeline: Pipeline) -> list[Parameter]:
    """Every step's results, as the run's: `<step>-<result>`."""
    return [
        Parameter(
            name=f"{step.name}-{name}",
            value_from=m.ValueFrom(
                parameter=f"{{{{tasks.{step.template}.outputs.parameters.{name}}}}}",
                default=default,
            ),
        )
        for step in pipeline.steps
        for name, default in step.results.items()
    ]


def volumes(settings: Settings, pipeline: Pipeline) -> list[Any]:
    """All volumes; a pod gets those that its container mounts."""
    found: list[Any] = [
        ExistingVolume(name="runs", claim_name=_claim_name(settings)),
        _empty_dir("tmp", settings.scratch),
        _empty_dir("outputs", "16Mi"),
        _empty_dir("no-token", "1Mi"),
        _empty_dir("shm", settings.gpu.shared_memory, medium="Memory"),
        *(
            ExistingVolume(name=f"claim-{number}", claim_name=name, read_only=True)
            for number, name in enumerate(settings.claims)
        ),
    ]
    if access.any_submits(pipeline, settings):
        # Kubernetes publishes the API server's CA in every namespace; no token comes with it.
        root = m.ConfigMapVolumeSource(name="kube-root-ca.crt", optional=True)
        found.append(m.Volume(name="cluster-ca", config_map=root))
    if settings.ca_bundle:
        item = m.KeyToPath(key=settings.ca_bundle.key, path="ca.crt")
        bundle = m.ConfigMapVolumeSource(name=settings.ca_bundle.config_map, items=[item])
        found.append(m.Volume(name="ca", config_map=bundle))
    return found


def _empty_dir(name: str, size: str, medium: str | None = None) -> EmptyDirVolume:
    return EmptyDirVolume(name=name, medium=medium, size_limit=m.Quantity(root=size))


def mounts(step: Step, settings: Settings) -> list[m.VolumeMount]:
    """What the step's container sees of them."""
    places = {"runs": VOLUME, "tmp": "/tmp", "outputs": OUTPUTS}  # noqa: S108
    if access.submits(step, settings) and not access.needs_token(step, settings):
        places["cluster-ca"] = security.TOKEN
    elif not access.needs_token(step, settings):
        places["no-token"] = security.TOKEN
    if trains_in_pod(step, settings):
        places["shm"] = "/dev/shm"  # noqa: S108
    return _mounts(places, settings) + [
        m.VolumeMount(name=f"claim-{number}", mount_path=f"{CLAIMS}/{name}", read_only=True)
        for number, name in enumerate(settings.claims)
    ]


def _mounts(places: Mapping[str, str], settings: Settings) -> list[m.VolumeMount]:
    """The volumes at their places, and the certificates that every container's environment names."""
    found = [m.VolumeMount(name=name, mount_path=path) for name, path in places.items()]
    if settings.ca_bundle:
        folder = _CA_FILE.rpartition("/")[0]
        found.append(m.VolumeMount(name="ca", mount_path=folder, read_only=True))
    return found


def own_resources(step: Step, settings: Settings) -> bool:
    """Whether parameters say how large the step's own pod is (not: how large its TrainJob's are)."""
    return set(POD) <= set(step.params.model_fields) and not access.submits(step, settings)


def trains_in_pod(step: Step, settings: Settings) -> bool:
    """Whether several processes of the step's pod talk over shared memory."""
    return own_resources(step, settings) and "launcher" in step.params.model_fields


def pod_patch(step: Step, settings: Settings) -> dict[str, Any]:
    """The executor's security and, where parameters set them, the step's CPU, memory and GPUs.

    Argo refuses tags in `resources` (quantities are typed); a patch is text, read after they are
    replaced, so a value must not be able to write more of it than a quantity.
    """
    if not own_resources(step, settings):
        return security.EXECUTOR
    gpu, cpu, memory = (quantity(step, name) for name in POD)
    resources = {
        "requests": {"cpu": cpu, "memory": memory},
        "limits": {"memory": memory, settings.gpu.resource: gpu},
    }
    main = {"name": "main", "resources": resources}
    return {**security.EXECUTOR, "containers": [main, *security.EXECUTOR["containers"]]}


def quantity(step: Step, field_name: str) -> str:
    """A tag that gives a step's parameter if it is a quantity, and else a size for saying so.

    Argo does not hold parameters against anything, so this is all that bounds `argo submit -p`; the step
    refuses the value at its start, in words. Some versions of Argo take an expression apart at its first
    question mark: there is one.
    """
    value = tag(step, field_name).strip("{}")
    pattern = COUNT if field_name == "gpu" else QUANTITY
    return f"{{{{={value} matches '{pattern}' ? {value} : '{_LEAST[field_name]}'}}}}"


def retry(settings: Settings) -> RetryStrategy:
    """Again, with growing waits, and only for what may pass by itself."""
    policy = settings.retry
    return RetryStrategy(
        limit=str(policy.limit),
        retry_policy="Always",
        expression=RETRY_WHEN,
        backoff=m.Backoff(
            duration=go_duration(policy.duration),
            factor=m.IntOrString(root=str(policy.factor)),
            cap=None if settings.argo == "3.6" else go_duration(policy.cap),
        ),
    )


def run_metrics(pipeline: Pipeline, settings: Settings) -> list[Gauge | Counter]:
    """How long runs take and how they end, on the controller's /metrics."""
    told = [*_metric_labels(pipeline, settings), Label(key="status", value="{{workflow.status}}")]
    prefix = pipeline.name.replace("-", "_")
    return [
        Counter(
            name=f"{prefix}_runs_total", help="Runs by how they ended.", labels=told, value="1"
        ),
        Gauge(
            name=f"{prefix}_run_duration_seconds",
            help="Seconds from the start of the last run to its end.",
            labels=told,
            value="{{workflow.duration}}",
            realtime=False,
        ),
    ]


def step_metrics(step: Step, pipeline: Pipeline, settings: Settings) -> list[Gauge]:
    """The step's results that are numbers."""
    return [
        Gauge(
            name=f"sft_{step.name}_{name.replace('-', '_')}",
            help=f"{name} of the last {step.name} step.",
            labels=_metric_labels(pipeline, settings),
            when=f"'{{{{outputs.parameters.{name}}}}}' != ''",
            value=f"{{{{outputs.parameters.{name}}}}}",
            realtime=False,
        )
        for name in step.measured
    ]


def _metric_labels(pipeline: Pipeline, settings: Settings) -> list[Label]:
    # One controller serves many teams, and a gauge with the same labels would be overwritten.
    return [
        Label(key="namespace", value="{{workflow.namespace}}"),
        Label(key="pipeline", value=settings.named(pipeline.name)),
    ]


class _Tags(dict[str, str]):
    """Names of parameters as Argo's tags, for the title of a run."""

    def __missing__(self, name: str) -> str:
        return f"{{{{workflow.parameters.{name}}}}}"


def _title_and_description(title: str, description: str) -> dict[str, str]:
    # https://argo-workflows.readthedocs.io/en/latest/title-and-description/
    return {
        "workflows.argoproj.io/title": title,
        "workflows.argoproj.io/description": description,
    }


def _claim_name(settings: Settings) -> str:
    return "{{workflow.name}}" if settings.storage.per_run else storage.name(settings)


def _tolerations(tolerations: list[Toleration]) -> list[m.Toleration] | None:
    found = [
        m.Toleration.model_validate({k: v for k, v in each.model_dump().items() if v})
        for each in tolerations
    ]
    return found or None


def _synchronization(settings: Settings) -> m.Synchronization | None:
    mutexes = [m.Mutex(name=settings.mutex)] if settings.mutex else None
    semaphores = (
        [
            m.SemaphoreRef(
                config_map_key_ref=m.ConfigMapKeySelector(
                    name=settings.semaphore.config_map, key=settings.semaphore.key
                )
            )
        ]
        if settings.semaphore
        else None
    )
    if not (mutexes or semaphores):
        return None
    return m.Synchronization(mutexes=mutexes, semaphores=semaphores)
