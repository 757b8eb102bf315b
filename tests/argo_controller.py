"""Argo Workflows in small: a rendered WorkflowTemplate is run, its containers as processes here.

What it takes from argo-workflows v4.1: submitted parameters replace the template's by name
(util/util.go), tags are replaced in the template's JSON text, each value as Go quotes it
(util/template), `depends` (workflow/controller/dag.go), retries by the expression
(workflow/controller/operator.go), outputs with their defaults (workflow/executor), the exit handler;
and from the kubelet the expansion of `$(NAME)`. Waiting and scheduling are left out.
"""

import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from tests.conftest import ROOT

ESCAPES = {
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
    '"': r"\"",
    "\\": r"\\",
}
CHOICE = re.compile(r"=([\w.]+) matches '([^']*)' \? ([\w.]+) : '([^']*)'")
"""The one kind of expression that is evaluated: a value if it matches, else a text."""
BOUND = ("--workspace=", "--cache=", "--outputs=", "--claims=")


class ArgoError(Exception):
    """Argo would not start the workflow, or not the pod."""


@dataclass
class Attempt:
    """A pod of a template."""

    template: str
    exit_code: int
    message: str
    log: str = ""
    argv: list[str] = field(default_factory=list)
    patch: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a workflow ended."""

    phase: str
    outputs: dict[str, str]
    attempts: dict[str, list[Attempt]]
    nodes: dict[str, str]
    title: str


def go_quote(text: str) -> str:
    """strconv.Quote without the outer quotes."""
    return "".join(map(_quoted, text))


def _quoted(character: str) -> str:
    code = ord(character)
    if character in ESCAPES:
        return ESCAPES[character]
    if character == " " or unicodedata.category(character)[0] in "LMNPS":
        return character
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def replace(template: Any, scope: Mapping[str, str]) -> Any:
    """The template with its tags replaced, once; tags that are not known stay."""
    text = json.dumps(template, ensure_ascii=False)
    found = re.split(r"\{\{(.*?)\}\}", text)
    if "{{" in found[-1]:
        raise ArgoError("cannot find end tag")
    for number in range(1, len(found), 2):
        name = found[number]
        known = _chosen(name, scope) if name.startswith("=") else scope.get(name.strip())
        found[number] = f"{{{{{name}}}}}" if known is None else go_quote(known)
    try:
        return json.loads("".join(found))
    except json.JSONDecodeError as error:
        raise ArgoError("the result was invalid JSON") from error


def _chosen(expression: str, scope: Mapping[str, str]) -> str:
    found = CHOICE.fullmatch(expression)
    if not found:
        raise ArgoError(f"an expression would be evaluated: {expression}")
    asked, pattern, value, other = found.groups()
    # Go's $ is the end of the text, not of a line before it.
    return scope[value] if re.search(pattern.replace("$", r"\Z"), scope[asked]) else other


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) as the kubelet expands it; $$ is a dollar sign."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]),
        text,
    )


class Controller:
    """A cluster of one namespace with one template."""

    def __init__(
        self,
        template: Mapping[str, Any],
        folder: Path,
        secrets: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.spec = template["spec"]
        self.templates = {each["name"]: each for each in self.spec["templates"]}
        self.folder = folder
        self.secrets = secrets or {}
        self.lost: dict[str, list[tuple[int, str]]] = {}
        """Exit code and message of pods of a template that end so before they begin."""
        self.killed: dict[str, list[str]] = {}
        """Log lines at which a pod of a template is killed."""

    def submit(
        self, given: Mapping[str, str], name: str = "sft-x7k2p", entrypoint: str = ""
    ) -> Outcome:
        """`argo submit --from workflowtemplate/... -p ... --entrypoint`, to its end."""
        scope = self.scope(given, name)
        outcome = Outcome("Running", {}, {}, {}, "")
        annotations = self.spec["workflowMetadata"]["annotations"]
        outcome.title = replace(annotations, scope)["workflows.argoproj.io/title"]
        first = entrypoint or self.spec["entrypoint"]
        outcome.phase, outcome.outputs = self._node(first, scope, outcome)
        failures = [
            {"displayName": attempts[-1].template, "message": attempts[-1].message}
            for attempts in outcome.attempts.values()
            if attempts[-1].exit_code
        ]
        last = self.spec["hooks"]["exit"]["template"]
        ended = {
            "workflow.status": outcome.phase,
            "workflow.failures": f'"{go_quote(json.dumps(failures))}"',
        }
        phase, _ = self._node(last, scope | ended, outcome)
        if outcome.phase == "Succeeded":
            outcome.phase = phase
        return outcome

    def scope(self, given: Mapping[str, str], name: str = "sft-x7k2p") -> dict[str, str]:
        """What the workflow's tags stand for; ArgoError where a parameter has no value."""
        scope = {"workflow.name": name, "workflow.uid": f"uid-of-{name}"}
        for parameter in self.spec["arguments"]["parameters"]:
            value = given.get(parameter["name"], parameter.get("value"))
            if value is None:
                raise ArgoError(f"spec.arguments.{parameter['name']}.value is required")
            is_own = parameter["name"] not in given  # a submitted value comes without the enum
            if is_own and value not in parameter.get("enum", [value]):
                raise ArgoError(f"{parameter['name']}: {value!r} is not in the enum")
            scope[f"workflow.parameters.{parameter['name']}"] = value
        return scope

    def pod(self, name: str, scope: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The template's container as the kubelet gets it, and the patch of its pod."""
        template = self.templates[name]
        for _ in range(2):  # Argo goes over it again when it makes the pod
            template = replace(template, scope)
        container = template["container"]
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            found = self._secret(source["secretRef"]) or {}
            variables |= {source.get("prefix", "") + key: value for key, value in found.items()}
        for each in container.get("env", []):
            if "value" in each:
                variables[each["name"]] = expand(each["value"], variables)
                continue
            if field := each["valueFrom"].get("fieldRef"):
                variables[each["name"]] = {"metadata.name": name}[field["fieldPath"]]
                continue
            key = each["valueFrom"]["secretKeyRef"]
            value = (self._secret(key) or {}).get(key["key"])
            if value is not None:
                variables[each["name"]] = value
            elif not key.get("optional"):
                raise ArgoError(f"CreateContainerConfigError: {key['name']}.{key['key']}")
        argv = [expand(word, variables) for word in [*container["command"], *container["args"]]]
        return {**container, "argv": argv, "variables": variables}, yaml.safe_load(
            template["podSpecPatch"]
        )

    def _secret(self, reference: Mapping[str, Any]) -> Mapping[str, str] | None:
        found = self.secrets.get(reference["name"])
        if found is None and not reference.get("optional"):
            raise ArgoError(f"CreateContainerConfigError: {reference['name']}")
        return found

    def _node(
        self, name: str, scope: Mapping[str, str], outcome: Outcome
    ) -> tuple[str, dict[str, str]]:
        template = self.templates[name]
        run = self._dag if "dag" in template else self._with_retries
        phase, outputs = run(template, scope, outcome)
        outcome.nodes[name] = phase
        return phase, outputs

    def _dag(
        self, template: dict[str, Any], scope: Mapping[str, str], outcome: Outcome
    ) -> tuple[str, dict[str, str]]:
        phases: dict[str, str] = {}
        results: dict[str, str] = {}
        for task in template["dag"]["tasks"]:
            if _holds(task.get("depends", ""), phases):
                phase, outputs = self._node(task["template"], scope, outcome)
                prefix = f"tasks.{task['name']}.outputs.parameters."
                results |= {f"{prefix}{name}": value for name, value in outputs.items()}
            else:
                phase = outcome.nodes[task["name"]] = "Omitted"
            phases[task["name"]] = phase
        outputs = {}
        for each in template["outputs"]["parameters"]:
            source = each["valueFrom"]["parameter"].strip("{}")
            outputs[each["name"]] = results.get(source, each["valueFrom"]["default"])
        return "Failed" if "Failed" in phases.values() else "Succeeded", outputs

    def _with_retries(
        self, template: dict[str, Any], scope: Mapping[str, str], outcome: Outcome
    ) -> tuple[str, dict[str, str]]:
        attempts = outcome.attempts.setdefault(template["name"], [])
        retry = template["retryStrategy"]
        for _ in range(int(retry["limit"]) + 1):
            attempt, outputs = self._attempt(template, scope)
            attempts.append(attempt)
            if not attempt.exit_code:
                return "Succeeded", outputs
            if not again(retry["expression"], attempt.exit_code, attempt.message):
                break
        return "Failed", outputs

    def _attempt(
        self, template: dict[str, Any], scope: Mapping[str, str]
    ) -> tuple[Attempt, dict[str, str]]:
        name = template["name"]
        results = template.get("outputs", {}).get("parameters", [])
        outputs = {each["name"]: each["valueFrom"]["default"] for each in results}
        if self.lost.get(name):
            return Attempt(name, *self.lost[name].pop(0)), outputs
        container, patch = self.pod(name, scope)
        own = self.folder / "pods" / f"{name}-{len(list(self.folder.glob('pods/*')))}"
        places = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        folders = {places["runs"]: self.folder / "volume", "/claims": self.folder / "claims"}
        for volume in ("tmp", "outputs"):
            if volume in places:
                folders[places[volume]] = own / volume
        for path in folders.values():
            path.mkdir(parents=True, exist_ok=True)
        argv = [_moved(word, folders) for word in container["argv"]]
        code, log = self._process(name, argv, container["variables"], str(own / "tmp"))
        for each in results:
            path = own / "outputs" / each["valueFrom"]["path"].rpartition("/")[2]
            if path.exists():
                outputs[each["name"]] = path.read_text().removesuffix("\n")
        return Attempt(name, code, f"Error (exit code {code})", log, argv, patch), outputs

    def _process(
        self, name: str, argv: list[str], variables: Mapping[str, str], home: str
    ) -> tuple[int, str]:
        assert argv[0] == "python"
        inherited = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
        inside = {"KUBERNETES_SERVICE_HOST": "192.0.2.1", "PYTHONPATH": str(ROOT)}
        lines = []
        with subprocess.Popen(
            [sys.executable, *argv[1:]],
            env={**inherited, **variables, **inside, "HOME": home},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if self.killed.get(name) and self.killed[name][0] in line:
                    self.killed[name].pop(0)
                    process.send_signal(signal.SIGKILL)
        # The emissary reports a child that a signal has ended as 137.
        return 137 if process.returncode < 0 else process.returncode, "".join(lines)


def again(expression: str, exit_code: int, message: str) -> bool:
    """Whether a retry strategy's expression asks for another attempt."""
    for theirs, ours in (("||", " or "), ("&&", " and "), ("asInt(", "int(")):
        expression = expression.replace(theirs, ours)
    expression = re.sub(r"([\w.]+) matches ('[^']*')", r"search(\2, \1)", expression)
    last = SimpleNamespace(exitCode=str(exit_code), message=message)
    return bool(eval(expression, {"lastRetry": last, "search": re.search}))


def _holds(depends: str, phases: Mapping[str, str]) -> bool:
    words = re.sub(
        r"([-\w]+)\.(\w+)", lambda found: str(phases[found[1]] == found[2]), depends or "True"
    )
    return bool(eval(words.replace("||", " or ").replace("&&", " and ")))


def _moved(word: str, folders: Mapping[str, Path]) -> str:
    """An argument of the engine's with its path as it is here."""
    for flag in BOUND:
        if word.startswith(flag):
            path = word.removeprefix(flag)
            mount = next(mount for mount in folders if f"{path}/".startswith(f"{mount}/"))
            return f"{flag}{folders[mount]}{path.removeprefix(mount)}"
    return word
