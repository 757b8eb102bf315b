"""Parameters by any of their names: from flags, a YAML file or Python to the steps' models."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from steps import flags
from steps.errors import UsageError
from steps.params import (
    MAN,
    POD,
    StepParams,
    in_pod,
    is_secret,
    marked,
    may_hold_secret,
    required_on_cluster_only,
    type_name,
)
from steps.train.params import TrainParams
from workflows import literals
from workflows.pipeline import Parameter, Pipeline

RESERVED = frozenset(
    {
        "cache",
        "check",
        "claims",
        "cluster_template",
        "context",
        "dry_run",
        "entrypoint",
        "from",
        "help",
        "label",
        "namespace",
        "output",
        "params",
        "resume",
        "run_name",
        "runs",
        "server",
        "template",
        "verbosity",
        "watch",
    }
)
"""Names that belong to the commands themselves, so no parameter has them as its short name."""


@dataclass(frozen=True)
class Names:
    """A parameter's names, in snake case: `phase_..`, `<step>_<field>`, and a short one if it has it."""

    parameter: Parameter
    long: str
    short: str | None

    def every(self) -> list[str]:
        """All of them."""
        return [self.parameter.name, self.long, *([self.short] if self.short else [])]

    @property
    def flag(self) -> str:
        """The shortest as a flag, for messages."""
        return flags.flag(self.short or self.long)


def names(pipeline: Pipeline) -> list[Names]:
    """The names of all parameters.

    A field's own name is short for the only step that has it; where several have it, for the one
    in which it is a parameter that users meet first (`--model` is the base model).
    """
    parameters = pipeline.parameters()
    owners: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        owners[parameter.field_name].append(parameter)
    found = []
    for parameter in parameters:
        same = owners[parameter.field_name]
        first = [other for other in same if marked(other.field, MAN)]
        is_only = (first or same) == [parameter]
        short = parameter.field_name if is_only and parameter.field_name not in RESERVED else None
        found.append(Names(parameter, f"{parameter.step.name}_{parameter.field_name}", short))
    return found


def labels(pipeline: Pipeline, step: str) -> dict[str, str]:
    """The flag of each of a step's fields, for messages."""
    return {
        each.parameter.field_name: each.flag
        for each in names(pipeline)
        if each.parameter.step.name == step
    }


def shared_secrets(pipeline: Pipeline) -> dict[str, list[Parameter]]:
    """Secret fields that several steps have: one name sets them all (`--hf-token`)."""
    owners: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in pipeline.parameters():
        if is_secret(parameter.field):
            owners[parameter.field_name].append(parameter)
    return {name: found for name, found in owners.items() if len(found) > 1}


def from_file(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The values that a YAML file holds, by whatever names; UsageError where it cannot be read."""
    from workflows import documents  # its import of yaml would slow every --help

    return {} if missing_ok and not path.exists() else documents.from_file(path)


def by_name(pipeline: Pipeline, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values by workflow name, and a line for each name that is unknown or repeats another.

    Where a name that sets a secret of several steps is given too, a step's own name wins.
    """
    shared = shared_secrets(pipeline)
    known = {name: [n.parameter] for n in names(pipeline) for name in n.every()} | shared
    spelt: dict[str, str] = {}
    found: dict[str, Any] = {}
    problems = []
    for spelling, value in sorted(given.items(), key=lambda item: _snake(item[0]) not in shared):
        name = _snake(spelling)
        if name not in known:
            problems.append(unknown(spelling, known))
            continue
        meant = name if name in shared else known[name][0].name
        if meant in spelt:
            problems.append(
                f"{spelt[meant]} and {spelling} are one parameter: leave one of them out"
            )
        spelt[meant] = spelling
        found |= {parameter.name: _plain(parameter, value) for parameter in known[name]}
    return found, problems


def assign(
    pipeline: Pipeline, *sources: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Values by step and field, later sources before earlier, and what is wrong with the names."""
    parameters = {parameter.name: parameter for parameter in pipeline.parameters()}
    values: dict[str, dict[str, Any]] = {step.name: {} for step in pipeline.steps}
    problems = []
    for source in sources:
        found, wrong = by_name(pipeline, source)
        problems += wrong
        for name, value in found.items():
            values[parameters[name].step.name][parameters[name].field_name] = value
    return values, problems


def build(
    pipeline: Pipeline, values: Mapping[str, Mapping[str, Any]], wanted: Iterable[str]
) -> tuple[dict[str, StepParams], list[str]]:
    """The models of the wanted steps, and a line for each value that does not fit.

    A model is of the values that fit, so that what else is wrong shows at once; there is none where a
    required value is missing. None stands for a value that a run's file names without holding it.
    """
    models: dict[str, StepParams] = {}
    problems = []
    for name in wanted:
        params = pipeline.step(name).params
        label = labels(pipeline, name)
        lost = [
            field
            for field, value in values[name].items()
            if value is None and may_hold_secret(params.model_fields[field])
        ]
        problems += [
            f"{label[field]}: its value is not kept, since it may hold a secret: give it again"
            for field in lost
        ]
        rest = {field: value for field, value in values[name].items() if field not in lost}
        model, wrong = flags.validate(params, rest, label)
        problems += [
            line for line in wrong if line not in {flags.missing(label[field]) for field in lost}
        ]
        if model is not None:
            models[name] = model
    return models, problems


def of_trainjobs(pipeline: Pipeline, models: Mapping[str, StepParams]) -> list[Parameter]:
    """Parameters that were set and only a TrainJob's pods have, of steps that train in their own pod."""
    found = []
    for parameter in pipeline.parameters():
        model = models.get(parameter.step.name)
        if model is not None and getattr(model, "launcher", "") == "local":
            names = required_on_cluster_only(model, POD)
            found += [parameter] if parameter.field_name in names else []
    return found


def of_clusters(pipeline: Pipeline, models: Mapping[str, StepParams]) -> list[Names]:
    """Parameters that were set and only a cluster has, of steps that do their work on this machine."""
    from steps.train import launcher, local  # their imports would slow every --help

    here = {
        name: required_on_cluster_only(model, POD if in_pod() else ())
        for name, model in models.items()
        if not (isinstance(model, TrainParams) and launcher.choose(model) is not local)
    }
    return [
        n for n in names(pipeline) if n.parameter.field_name in here.get(n.parameter.step.name, [])
    ]


def texts(pipeline: Pipeline, given: Mapping[str, Any], where: str) -> dict[str, str]:
    """Values for later runs, by workflow name and as an engine writes them; others may be missing.

    Raises UsageError that lists all that is wrong with them; `where` is how it calls their place. A
    secret is refused: whoever can read the manifests could read it.
    """
    assigned, problems = assign(pipeline, given)
    for step in pipeline.steps:
        label = labels(pipeline, step.name)
        problems += flags.validate(step.params, assigned[step.name], label, partial=True)[1]
    found = {}
    for parameter in pipeline.parameters():
        value = assigned[parameter.step.name].get(parameter.field_name)
        if value is None:
            continue
        if type_name(parameter.field) == "bool" and not problems:
            value = TypeAdapter(bool).validate_python(value)  # one spelling, as enums have it
        found[parameter.name] = flags.as_text(value)
        if is_secret(parameter.field):
            problems.append(f"{parameter.name}: a secret belongs in a Kubernetes Secret")
        if fault := literals.fault(found[parameter.name]):
            problems.append(f"{parameter.name}: {fault}")
    refuse([f"{where}: {problem}" for problem in problems])
    return found


def refuse(problems: list[str]) -> None:
    """Raise UsageError with all problems, if there are any."""
    if problems:
        raise UsageError("\n  ".join(problems))


def _snake(name: Any) -> str:
    return str(name).replace("-", "_")


def _plain(parameter: Parameter, value: Any) -> Any:
    """YAML reads `cpu: 4` as a number; where text is wanted, its text is meant."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number and type_name(parameter.field) == "str" else value


def unknown(given: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of a parameter's."""
    name = _snake(given)
    names = list(known)
    of_steps = sorted(
        other
        for other in names
        if other.split("_", 1)[-1] == name and not other.startswith("phase_")
    )
    return f"{given} is not a parameter{flags.nearest(name, names, of_steps)}"
