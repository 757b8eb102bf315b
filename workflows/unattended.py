"""Runs by the parameters of the settings: what template, schedule and events have in common."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from steps.params import StepParams, type_name
from workflows import storage, values
from workflows.cluster.api import Template
from workflows.pipeline import SHAPING, Parameter, Pipeline
from workflows.settings import Settings

_STAND_INS = {
    "str": "/filled",
    "int": "1",
    "float": "1",
    "bool": "True",
    "list": "[]",
    "dict": "{}",
}
"""Values of required parameters while the others are checked, by their type."""


def template_label(settings: Settings, pipeline: Pipeline) -> dict[str, str]:
    """The label by which runs of the template are listed; Argo puts it on itself only since 4.1."""
    template = Template(settings.named(pipeline.name), cluster_scope=settings.scope == "cluster")
    return {template.label: template.name}


def refusals_of_defaults(settings: Settings, pipeline: Pipeline) -> list[str]:
    """What the rules have against the team's parameters, whatever else a run is given.

    Each step is held by itself: what does not go with another step's, a run may complete (an eval set
    where the team splits none off). Values that do not fit their own parameter are for `values.texts`.
    """
    models, _ = _models(settings, pipeline, {}, _required(pipeline))
    alone = [pipeline.refusals({name: model}) for name, model in models.items()]
    return [*chain(*alone), *storage.not_mounted(models, storage.mounted(settings))]


def refusals_of_example(
    settings: Settings, pipeline: Pipeline, parameter: Parameter, example: str
) -> list[str]:
    """What is wrong with a value that is to fill the parameter, whatever else a run is given."""
    filled = {**_required(pipeline), parameter.name: example}
    models, problems = _models(settings, pipeline, {}, filled)
    name = parameter.step.name
    return problems or pipeline.refusals({name: models[name]})


def _required(pipeline: Pipeline) -> dict[str, str]:
    """Parameters that each run must bring, as `filled` without examples."""
    return {each.name: "" for each in pipeline.parameters() if each.field.is_required()}


def workflow_spec(
    settings: Settings,
    pipeline: Pipeline,
    own: Mapping[str, Any],
    where: str,
    filled: Mapping[str, str] = {},
) -> dict[str, Any]:
    """The spec of a Workflow made from the template, with `own` parameters over the team's.

    `filled` are parameters that each run brings, by workflow name, with an example where one is
    known; they come last, with an empty value.
    Raises UsageError where the parameters are wrong, where a required one would be missing, or where
    the second run would fail because of the first.
    """
    texts = values.texts(pipeline, own, where)
    models, problems = _models(settings, pipeline, own, filled)
    problems += pipeline.refusals(models, repeated=True)
    problems += storage.not_mounted(models, storage.mounted(settings))
    values.refuse([f"{where}: {problem}" for problem in problems])
    return {
        "workflowTemplateRef": {
            "name": settings.named(pipeline.name),
            "clusterScope": True if settings.scope == "cluster" else None,
        },
        "arguments": {
            "parameters": [
                {"name": name, "value": text} for name, text in texts.items() if name not in filled
            ]
            + [{"name": name, "value": ""} for name in filled]
        },
    }


def _models(
    settings: Settings, pipeline: Pipeline, own: Mapping[str, Any], filled: Mapping[str, str]
) -> tuple[dict[str, StepParams], list[str]]:
    """The steps' parameters as a run would have them, and a line for each value that does not fit."""
    assigned, _ = values.assign(pipeline, settings.parameters, own)
    for step in pipeline.steps:
        for name in set(SHAPING) & set(step.params.model_fields):
            assigned[step.name][name] = getattr(settings, name)
    for parameter in pipeline.parameters():
        values_of_step = assigned[parameter.step.name]
        if example := filled.get(parameter.name):
            values_of_step[parameter.field_name] = example
        elif parameter.name in filled and parameter.field.is_required():
            stand_in = _STAND_INS[type_name(parameter.field)]
            values_of_step.setdefault(parameter.field_name, stand_in)
    return values.build(pipeline, assigned, [step.name for step in pipeline.steps])
