"""A run to be submitted: parameters by any of their names, checked, to the Workflow that Argo gets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steps import flags
from steps.evaluate.params import EvaluateParams
from steps.params import StepParams, is_secret
from steps.train.params import LABEL_KEY, LABEL_VALUE
from workflows import literals, storage, values
from workflows.cluster.api import DNS_LABEL, GROUP, VERSION, Object, Template
from workflows.pipeline import SHAPING, Parameter, Pipeline

WHOLE = "pipeline"
"""The entrypoint that is the template's own: all steps."""

_MOST_BYTES = 1_000_000  # an object in etcd has 1.5 MB, and the run's status needs room
_MASK = "**********"


@dataclass(frozen=True)
class Submission:
    """What a user asks for."""

    pipeline: Pipeline
    template: Template
    parameters: Sequence[Mapping[str, Any]]
    """Values by any of the parameters' names, later ones over earlier."""
    run_name: str | None = None
    """Names the workflow, and with it the run's folder."""
    entrypoint: str = WHOLE
    """The step to run alone, or all."""
    labels: Sequence[str] = field(default_factory=list)
    """As `key=value`."""

    def refuse_mistakes(self, known: Sequence[str] = ()) -> None:
        """Raise UsageError with all that is wrong whatever the cluster holds, `known` among it."""
        assigned, problems = values.assign(self.pipeline, *self.parameters)
        problems = [*known, *problems]
        missing = []
        for step in self.pipeline.steps:
            label = values.labels(self.pipeline, step.name)
            given = assigned[step.name]
            wrong = flags.validate(step.params, given, label, partial=True)[1]
            problems += wrong
            if step.name in self._wanted:
                every = flags.validate(step.params, given, label)[1]
                missing += [problem for problem in every if problem not in wrong]
        sent = self._texts(assigned)
        for parameter, text in sent:
            if fault := literals.fault(text):
                problems.append(f"{self._shown(parameter)}: {fault}")
        if sum(len(text.encode(errors="replace")) for _, text in sent) > _MOST_BYTES:
            problems.append(f"all parameters together are longer than {_MOST_BYTES:,} bytes")
        problems += self._faults_of_names()
        if problems:
            values.refuse([*problems, *missing])

    def workflow(self, template: Mapping[str, Any] | None, namespace: str | None) -> Object:
        """The Workflow to send: the template's name, what was given, and nothing else.

        UsageError where the template, if it is known, and the parameters do not go together.
        """
        assigned, _ = values.assign(self.pipeline, *self.parameters)
        there = _arguments(template) if template else {}
        known = {parameter.name for parameter in self.pipeline.parameters()}
        texts = {name: text for name, text in there.items() if name in known and text is not None}
        whole, _ = values.assign(self.pipeline, texts, *self.parameters)
        models, problems = values.build(self.pipeline, whole, self._wanted)
        if template:
            problems += self._strangers(assigned, template)
        problems += [
            f"{self._shown(parameter)}: only the pods of a TrainJob have it, and this run trains in the "
            "step's own: leave it at its default"
            for parameter in values.of_trainjobs(self.pipeline, models)
            if parameter.field_name in assigned[parameter.step.name]
        ]
        values.refuse(problems)
        problems = [*self._nothing_there(models), *self.pipeline.refusals(models)]
        if template:
            problems += storage.not_mounted(models, self._claims(template))
        values.refuse(problems)
        sent = {parameter.name: text for parameter, text in self._texts(assigned)}
        for parameter in self.pipeline.parameters():
            # Argo wants a value for each, also for the steps that do not run.
            if parameter.field.is_required() and parameter.name not in {**texts, **sent}:
                sent[parameter.name] = ""
        return self._object(sent, namespace)

    def secrets(self) -> list[Parameter]:
        """Parameters given here that belong in a Secret."""
        assigned, _ = values.assign(self.pipeline, *self.parameters)
        return [
            parameter
            for parameter, text in self._texts(assigned)
            if is_secret(parameter.field) and text
        ]

    def masked(self, workflow: Object) -> Object:
        """The Workflow as it may be shown."""
        hidden = {parameter.name for parameter in self.secrets()}
        shown = [
            {**each, "value": _MASK} if each["name"] in hidden else each
            for each in workflow["spec"]["arguments"]["parameters"]
        ]
        return {**workflow, "spec": {**workflow["spec"], "arguments": {"parameters": shown}}}

    @property
    def _wanted(self) -> list[str]:
        every = [step.name for step in self.pipeline.steps]
        return every if self.entrypoint == WHOLE else [self.entrypoint]

    def _texts(self, assigned: Mapping[str, Mapping[str, Any]]) -> list[tuple[Parameter, str]]:
        """What was given as Argo carries it, under the workflow's names."""
        found = []
        for parameter in self.pipeline.parameters():
            given = assigned[parameter.step.name]
            if parameter.field_name in given:
                value = given[parameter.field_name]
                if isinstance(value, str):
                    value = flags.from_text(value, parameter.field)
                try:
                    text = flags.as_text(value)
                except TypeError:  # a date of YAML's, which is told as no fitting value
                    text = str(value)
                found.append((parameter, text))
        return found

    def _object(self, parameters: Mapping[str, str], namespace: str | None) -> Object:
        metadata: Object = (
            {"name": self.run_name} if self.run_name else {"generateName": f"{self.template.name}-"}
        )
        if namespace:
            metadata["namespace"] = namespace
        metadata["labels"] = {
            **dict(label.split("=", 1) for label in self.labels),
            self.template.label: self.template.name,
        }
        reference: Object = {"name": self.template.name}
        if self.template.cluster_scope:
            reference["clusterScope"] = True
        spec: Object = {
            "workflowTemplateRef": reference,
            "arguments": {
                "parameters": [{"name": name, "value": text} for name, text in parameters.items()]
            },
        }
        if self.entrypoint != WHOLE:
            spec["entrypoint"] = self.pipeline.step(self.entrypoint).template
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Workflow",
            "metadata": metadata,
            "spec": spec,
        }

    def _strangers(
        self, assigned: Mapping[str, Mapping[str, Any]], template: Mapping[str, Any]
    ) -> list[str]:
        """What the template was not rendered for."""
        there = _arguments(template)
        kind = f"{self.template.kind} {self.template.name}"
        problems = []
        for parameter, text in self._texts(assigned):
            shown = self._shown(parameter)
            if parameter.name not in there:
                problems.append(
                    f"{shown}: {kind} has no such parameter; it was rendered by another version: "
                    "render and apply it again, or leave the parameter out"
                )
            elif parameter.field_name in SHAPING and text != there[parameter.name]:
                problems.append(
                    f"{shown}: the pods of {kind} were rendered for {there[parameter.name]!r}, "
                    f"not {text!r}: change the setting {parameter.field_name}, render and apply it"
                )
        if self.entrypoint != WHOLE:
            box = self.pipeline.step(self.entrypoint).template
            boxes = {each.get("name") for each in template["spec"].get("templates") or []}
            if box not in boxes:
                problems.append(f"--entrypoint: {kind} has no template {box!r}")
            elif storage.CLAIM in boxes:
                problems.append(
                    f"--entrypoint: {kind} makes a claim for each run, which no step does alone"
                )
        return problems

    def _claims(self, template: Mapping[str, Any]) -> set[str]:
        """Claims that the template's pods have; one that is made for the run is named after it."""
        claims = [
            each.get("persistentVolumeClaim") for each in template["spec"].get("volumes") or []
        ]
        names = {claim["claimName"] for claim in claims if claim}
        return {name.replace("{{workflow.name}}", self.run_name or "") for name in names} - {""}

    def _faults_of_names(self) -> list[str]:
        problems = []
        if self.run_name is not None and not DNS_LABEL.fullmatch(self.run_name):
            problems.append(
                f"--run-name: {self.run_name!r} cannot name a workflow: up to 63 lower-case "
                "letters, digits and dashes, with no dash at either end"
            )
        if not DNS_LABEL.fullmatch(self.template.name):
            flag = "--cluster-template" if self.template.cluster_scope else "--template"
            problems.append(
                f"{flag}: {self.template.name!r} is not the name of a {self.template.kind}"
            )
        for label in self.labels:
            key, equals, value = label.partition("=")
            if not (equals and re.fullmatch(LABEL_KEY, key) and re.fullmatch(LABEL_VALUE, value)):
                problems.append(f"--label: {label!r} is not key=value as Kubernetes takes labels")
        steps = [step.name for step in self.pipeline.steps]
        if self.entrypoint not in (WHOLE, *steps):
            problems.append(
                f"--entrypoint: there is no {self.entrypoint!r}; there are: {', '.join([WHOLE, *steps])}"
            )
        return problems

    def _nothing_there(self, models: Mapping[str, StepParams]) -> list[str]:
        """A run that Argo names has a new folder: a step alone finds nothing there that it needs."""
        alone = self.run_name is None and self.entrypoint != WHOLE
        if not alone or not self.pipeline.step(self.entrypoint).needs:
            return []
        model, way = models[self.entrypoint], "name the run with --run-name"
        if isinstance(model, EvaluateParams):
            if model.model:
                return []
            way += ", or a model with --evaluate-model"
        return [f"--entrypoint {self.entrypoint}: goes on with a run's folder: {way}"]

    def _shown(self, parameter: Parameter) -> str:
        return values.labels(self.pipeline, parameter.step.name)[parameter.field_name]


def _arguments(template: Mapping[str, Any]) -> dict[str, str | None]:
    """The template's parameters, each with its value if it has one."""
    found = (template["spec"].get("arguments") or {}).get("parameters") or []
    return {each["name"]: each.get("value") for each in found}
