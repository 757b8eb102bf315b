"""The DAG as plain data: which steps, in which order, with which parameters and results.

Nothing here knows an engine. Argo, Tekton and the local engine each read this module and turn it
into their own terms; a step added here appears in all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic.fields import FieldInfo

from steps.dataset.params import DatasetParams
from steps.errors import UsageError
from steps.evaluate.params import EvaluateParams
from steps.params import FURTHER, MAN, StepParams, marked
from steps.record import Record
from steps.register.params import RegisterParams
from steps.secrets import Secret
from steps.train.params import TrainParams

SHAPING = ("launcher", "cluster_auth")
"""Parameters that the shape of a rendered pod follows from: a setting of the cluster, not of a run."""


@dataclass(frozen=True)
class Step:
    """One box of the picture."""

    params: type[StepParams]
    phase: str
    """Begins the names of its workflow parameters."""
    image: str
    """Image that holds what the step needs, without registry and tag."""
    module: str
    """Run as `python -m <module>`."""
    template: str
    """The box's name in Argo and Tekton."""
    needs: tuple[str, ...] = ()
    """Steps that must have succeeded before this one starts."""
    results: Mapping[str, str] = field(default_factory=dict)
    """Small results it hands to the engine, each with what stands there when it gives none."""
    measured: tuple[str, ...] = ()
    """Results that are numbers to watch over many runs."""
    cpu: str = "1"
    memory: str = "2Gi"
    """Resources of its pod where no parameter sets them."""

    @property
    def name(self) -> str:
        """The step's name: its record and log are named after it."""
        return self.params.step

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Kubernetes Secrets that it may need."""
        return self.params.secrets


@dataclass(frozen=True)
class Parameter:
    """A workflow parameter, as every engine names it."""

    name: str
    step: Step
    field_name: str
    field: FieldInfo


Models = Mapping[str, StepParams | None]
"""Parameters of the steps that run, by step; None where they are too faulty to be known."""

Rule = Callable[[Models, Mapping[str, Record] | None], str | None]
"""A rule over several steps, by name: the parameters of those that run, and the records of those that
are done; None where the run's folder is not at hand, for the run is one of pods."""


@dataclass(frozen=True)
class Pipeline:
    """Steps in an order in which each comes after those it needs."""

    name: str
    description: str
    steps: tuple[Step, ...]
    title: str = ""
    """Title of a run; a parameter's name in braces stands for its value."""
    rules: tuple[Rule, ...] = ()
    """What must not come together; each gives the problem or None."""
    repeat_rules: tuple[Rule, ...] = ()
    """What must not where run follows run: a schedule, events."""

    def __post_init__(self) -> None:
        """Refuse a DAG with a missing, repeated, or later need (ValueError)."""
        seen: set[str] = set()
        for step in self.steps:
            if step.name in seen:
                raise ValueError(f"{self.name}: two steps are named {step.name!r}")
            for need in step.needs:
                if need not in seen:
                    raise ValueError(
                        f"{self.name}: {step.name!r} needs {need!r}, which is not before it"
                    )
            seen.add(step.name)

    def step(self, name: str) -> Step:
        """The step of that name (KeyError where there is none)."""
        return {step.name: step for step in self.steps}[name]

    def refusals(
        self,
        models: Models,
        records: Mapping[str, Record] | None = None,
        *,
        repeated: bool = False,
    ) -> list[str]:
        """What the rules have against these parameters, and against what steps have found.

        `repeated` asks for runs that follow one another with the same parameters.
        """
        rules = self.rules + (self.repeat_rules if repeated else ())
        return [problem for rule in rules if (problem := rule(models, records))]

    def parameters(self) -> list[Parameter]:
        """All workflow parameters: those a user meets first, the optional ones, then the further."""
        every = [
            Parameter(parameter_name(step, name, field), step, name, field)
            for step in self.steps
            for name, field in step.params.model_fields.items()
        ]
        return sorted(every, key=lambda parameter: _rank(parameter.field))


def parameter_name(step: Step, name: str, field: FieldInfo) -> str:
    """The rule: `phase_<NN>_<step>_<man|opt>_<field>`."""
    return f"{step.phase}_{'man' if marked(field, MAN) else 'opt'}_{name}"


def _rank(field: FieldInfo) -> int:
    if marked(field, FURTHER):
        return 2
    return 0 if marked(field, MAN) else 1


def nothing_to_go_on_with(models: Models, records: Mapping[str, Record] | None) -> str | None:
    """A step cannot run where those before it are left out and have left nothing."""
    if records is None:
        return None
    there, evaluate = {*models, *records}, models.get("evaluate")
    if "train" in models and "dataset" not in there:
        return "the dataset step is left out and has left no rows in this run: begin with it"
    is_given = isinstance(evaluate, EvaluateParams) and evaluate.model
    if "train" not in there and "evaluate" not in records and not is_given:
        return (
            "the train step is left out and has left no model in this run: begin with it, or name "
            "a model by --evaluate-model"
        )
    return None


def nothing_to_score(models: Models, records: Mapping[str, Record] | None) -> str | None:
    """Without held-out rows and without tasks, training would end in an evaluation of nothing."""
    dataset, evaluate = models.get("dataset"), models.get("evaluate")
    if not isinstance(evaluate, EvaluateParams) or evaluate.scores_tasks:
        return None
    no_tasks = "--limit is 0" if evaluate.tasks else "--tasks is empty"
    if isinstance(dataset, DatasetParams) and dataset.data_split == 1.0 and not dataset.eval_uri:
        return f"--data-split 1.0 holds no rows out and {no_tasks}: nothing would be evaluated"
    if records and "dataset" in records and not records["dataset"].metrics["rows_eval"]:
        return (
            f"no rows are held out, for there are too few different ones, and {no_tasks}: nothing "
            "would be evaluated; give more rows, an --eval-uri, or tasks"
        )
    return None


def training_that_cannot_begin(models: Models, _records: Mapping[str, Record] | None) -> str | None:
    """What the train step would refuse at its start is told before the steps in front of it run."""
    train = models.get("train")
    if not isinstance(train, TrainParams):
        return None
    from steps.train import launcher  # their imports would slow every --help
    from steps.train.trainjob import limits

    refused = launcher.mistakes(train)
    if train.launcher == "trainjob":
        refused += limits.refusals(train)
    return "\n  ".join(refused) or None


def places_of_another_machine(models: Models, records: Mapping[str, Record] | None) -> str | None:
    """A pod has neither the folder where the user stands nor the user's kubeconfig."""
    if records is not None:
        return None
    train, evaluate = models.get("train"), models.get("evaluate")
    refused, relative = [], []
    if isinstance(train, TrainParams):
        if train.cluster_auth == "kubeconfig":
            refused.append(
                "--cluster-auth kubeconfig: there is none in a pod: take secret or service-account"
            )
        if train.chat_template and not train.chat_template.startswith("/"):
            relative.append(("--chat-template", train.chat_template))
    if isinstance(evaluate, EvaluateParams):
        relative += [
            ("--tasks", task)
            for task in evaluate.tasks
            if task.endswith((".yaml", ".yml")) and not task.startswith("/")
        ]
    refused += [
        f"{flag} {path}: a relative path, which leads nowhere in a pod: write the absolute path there"
        for flag, path in relative
    ]
    return "\n  ".join(refused) or None


def data_that_no_pod_can_read(models: Models, records: Mapping[str, Record] | None) -> str | None:
    """An address that is none, or of another machine, is told before a pod is waited for."""
    dataset = models.get("dataset")
    if records is not None or not isinstance(dataset, DatasetParams):
        return None
    from steps.dataset import sources  # their imports would slow every --help

    try:
        sources.refuse_what_no_pod_can_read(dataset)
    except UsageError as error:
        return str(error)
    return None


def models_that_no_pod_can_read(models: Models, records: Mapping[str, Record] | None) -> str | None:
    """As for the data; of a base model the train step would tell only after the data step."""
    if records is not None:
        return None
    from steps import base_model  # its imports would slow every --help

    train, evaluate = models.get("train"), models.get("evaluate")
    given = {
        "--model": train.model if isinstance(train, TrainParams) else "",
        "--evaluate-model": evaluate.model if isinstance(evaluate, EvaluateParams) else "",
    }
    refused = []
    for flag, model in given.items():
        try:
            if model:
                base_model.refuse_what_no_pod_can_read(model)
        except UsageError as error:
            refused.append(f"{flag} {error}")
    return "\n  ".join(refused) or None


def same_version_again(models: Models, _records: Mapping[str, Record] | None) -> str | None:
    """From the second run on, another model would stand under the version already."""
    register = models.get("register")
    if isinstance(register, RegisterParams) and register.on_conflict == "error":
        return (
            "on_conflict is error, so every run but the first would fail to register; set "
            "phase_04_registry_opt_on_conflict to increment"
        )
    return None


SFT = Pipeline(
    name="sft-pipeline",
    description="Supervised fine-tuning: data set, training, evaluation, registration.",
    title="Fine-tune {phase_02_train_man_model}",
    rules=(
        nothing_to_go_on_with,
        nothing_to_score,
        data_that_no_pod_can_read,
        models_that_no_pod_can_read,
        places_of_another_machine,
        training_that_cannot_begin,
    ),
    repeat_rules=(same_version_again,),
    steps=(
        Step(
            params=DatasetParams,
            phase="phase_01_dataset",
            image="sft-dataset",
            module="steps.dataset",
            template="dataset-download",
            results={"rows-train": "0", "rows-eval": "0"},
            cpu="2",
            memory="2Gi",
        ),
        Step(
            params=TrainParams,
            phase="phase_02_train",
            image="sft-train",
            module="steps.train",
            template="train",
            needs=("dataset",),
            results={"model": "", "loss-last": ""},
            measured=("loss-last",),
            cpu="4",
            memory="16Gi",
        ),
        Step(
            params=EvaluateParams,
            phase="phase_03_eval",
            image="sft-evaluate",
            module="steps.evaluate",
            template="evaluate",
            needs=("dataset", "train"),
            results={"heldout-loss": "", "heldout-loss-base": ""},
            measured=("heldout-loss", "heldout-loss-base"),
            cpu="4",
            memory="64Gi",
        ),
        Step(
            params=RegisterParams,
            phase="phase_04_registry",
            image="sft-register",
            module="steps.register",
            template="register",
            needs=("evaluate",),
            results={"status": "", "version": "", "uri": "", "id": ""},
            cpu="500m",
            memory="1Gi",
        ),
    ),
)
