"""Parameters by any of their names: from flags, a YAML file or Python to the steps' models."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter

from steps import flags
from steps.errors import UsageError
from steps.params import MAN, StepParams, is_secret, marked, type_name
from workflows import literals
from workflows.pipeline import Parameter, Pipeline

RESERVED = frozenset(
    {
        "cache",
        "check",
        "claims",
        "from",
        "help",
        "params",
        "resume",
        "run_name",
        "runs",
        "verbosity",
    }
)
"""Names that belong to the command itself, so no parameter has them as its short name."""


@dataclass(frozen=True)
class Names:
    """A parameter's names, in snake case: `phase_..`, `<step>_<field>`, and a short one if it has it."""

    parameter: Parameter
    long: str
    short: str | None

    def every(self) -> list[str]:
        """All of them."""
        return [self.parameter.name, self.long, *([self.short] if self.short else [])]


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


def shared_secrets(pipeline: Pipeline) -> dict[str, list[Parameter]]:
    """Secret fields that several steps have: one name sets them all (`--hf-token`)."""
    owners: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in pipeline.parameters():
        if is_secret(parameter.field):
            owners[parameter.field_name].append(parameter)
    return {name: found for name, found in owners.items() if len(found) > 1}


def assign(
    pipeline: Pipeline, *sources: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Values by step and field, later sources before earlier, and a line for each unknown name."""
    known = {name: [n.parameter] for n in names(pipeline) for name in n.every()}
    known |= shared_secrets(pipeline)
    values: dict[str, dict[str, Any]] = {step.name: {} for step in pipeline.steps}
    problems = []
    for source in sources:
        for given, value in source.items():
            name = str(given).replace("-", "_")
            if name not in known:
                problems.append(_unknown(str(given), name, known))
                continue
            for parameter in known[name]:
                values[parameter.step.name][parameter.field_name] = _plain(parameter, value)
    return values, problems


def build(
    pipeline: Pipeline, values: Mapping[str, Mapping[str, Any]], wanted: Iterable[str]
) -> tuple[dict[str, StepParams], list[str]]:
    """The models of the wanted steps, and a line for each value that does not fit."""
    label = {
        (n.parameter.step.name, n.parameter.field_name): flags.flag(n.short or n.long)
        for n in names(pipeline)
    }
    models: dict[str, StepParams] = {}
    problems = []
    for name in wanted:
        labels = {field: shown for (step, field), shown in label.items() if step == name}
        model, wrong = flags.validate(pipeline.step(name).params, values[name], labels)
        problems += wrong
        if model is not None:
            models[name] = model
    return models, problems


def texts(pipeline: Pipeline, given: Mapping[str, Any], where: str) -> dict[str, str]:
    """Values for later runs, by workflow name and as an engine writes them; others may be missing.

    Raises UsageError that lists all that is wrong with them; `where` is how it calls their place. A
    secret is refused: whoever can read the manifests could read it.
    """
    assigned, problems = assign(pipeline, given)
    for step in pipeline.steps:
        values = assigned[step.name]
        problems += flags.validate(step.params, values, partial=True)[1]
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


def _plain(parameter: Parameter, value: Any) -> Any:
    """YAML reads `cpu: 4` as a number; where text is wanted, its text is meant."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return flags.as_text(value) if number and type_name(parameter.field) == "str" else value


def _unknown(given: str, name: str, known: Iterable[str]) -> str:
    endings = sorted(other for other in known if other.split("_", 1)[-1] == name)
    steps = [other for other in endings if not other.startswith("phase_")]
    near = steps or get_close_matches(name, list(known), n=1)
    hint = " or ".join(flags.flag(other) for other in near)
    return f"{given} is not a parameter" + (f"; did you mean {hint}?" if hint else "")
