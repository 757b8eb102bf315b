"""`sft submit`: start a run of the pipeline on a cluster with Argo Workflows."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steps import flags
from steps.errors import (
    ConfigError,
    DataError,
    ExistsError,
    ForbiddenError,
    NotThereError,
    TransientError,
)
from workflows import parameter_flags, values
from workflows.cluster import api, connection
from workflows.commands.watch import to_the_end
from workflows.console import Console
from workflows.pipeline import SFT
from workflows.submission import WHOLE, Submission

_RUN = {
    "run_name": (
        "NAME",
        "Name of the workflow and of the run's folder. Default: one of Argo's making.",
    ),
    "entrypoint": (
        "STEP",
        f"Run one step alone: {', '.join(step.name for step in SFT.steps)}. (default: {WHOLE})",
    ),
    "params": ("FILE", "Parameters from a YAML file, by any of their names; -p and flags win."),
}
"""Flags of the run: what stands for the value, and the help."""
_OWN = (
    *(*_RUN, "parameter", "template", "cluster_template", "namespace", "context", "server"),
    *("label", "watch", "dry_run", "output"),
)


def main(argv: Sequence[str]) -> int:
    """Submit the run and return 0; with --watch, how the run ended."""
    parser = _parser()
    given, problems = flags.parse(parser, argv, list(parser._option_string_actions))
    own = {name: given.pop(name) for name in _OWN if name in given}
    named, faults = parameter_flags.pairs(own.get("parameter", []))
    submission = Submission(
        SFT,
        connection.template(own, SFT),
        [values.from_file(Path(own["params"])) if "params" in own else {}, named, given],
        run_name=own.get("run_name"),
        entrypoint=own.get("entrypoint", WHOLE),
        labels=own.get("label", []),
    )
    submission.refuse_mistakes([*problems, *faults])
    with Console() as console:
        for parameter in submission.secrets():
            console.line(
                "sft",
                "WARNING",
                f"{parameter.name}: whoever can read the run can read it: {parameter.field.description}",
            )
        if "dry_run" in own:
            return _dry_run(submission, own, console)
        return _submit(submission, own, console)


def _dry_run(submission: Submission, own: dict[str, Any], console: Console) -> int:
    """Print the Workflow; the template is looked at only where a cluster is named."""
    found = None
    if "context" in own or "server" in own:
        cluster = connection.connect(own)
        found = _template(cluster, submission.template, console)
        own = {**own, "namespace": cluster.namespace}
    workflow = submission.workflow(found, connection.namespace_of(own))
    _print(submission.masked(workflow), own.get("output", "yaml"))
    if submission.secrets():
        console.note("the secrets among the parameters are masked in what is printed")
    return 0


def _submit(submission: Submission, own: dict[str, Any], console: Console) -> int:
    cluster = connection.connect(own)
    found = _template(cluster, submission.template, console)
    try:
        created = cluster.submit(submission.workflow(found, cluster.namespace))
    except ExistsError as error:
        name = submission.run_name
        raise DataError(
            f"{error}: choose another --run-name; or go on with that run, where it failed "
            f"(argo retry {name} -n {cluster.namespace}); or delete it (argo delete {name} "
            f"-n {cluster.namespace}) and submit it again: what its folder has is not done again"
        ) from error
    except TransientError as error:
        raise TransientError(
            f"{error}; the answer may be lost and the run there all the same: "
            f"look at sft list {cluster.flags} first"
        ) from error
    name = created["metadata"]["name"]
    if "output" in own:
        _print(submission.masked(created), own["output"])
    else:
        print(name, flush=True)  # noqa: T201
    link = cluster.link(name)
    console.note(
        f"{name} is submitted in namespace {cluster.namespace}" + (f": {link}" if link else "")
    )
    if "watch" in own:
        return to_the_end(cluster, name, console)
    console.note(
        f"to follow it: sft watch {name} {cluster.flags}, "
        f"or argo watch {name} -n {cluster.namespace}"
    )
    return 0


def _template(cluster: api.Cluster, template: api.Template, console: Console) -> api.Object | None:
    """The template as it is there; None where it may not be read, and Argo will find out."""
    try:
        return cluster.template(template)
    except ForbiddenError as error:
        console.line(
            "sft", "WARNING", f"the parameters are not compared with the template: {error}"
        )
        return None
    except NotThereError as error:
        try:
            names = cluster.templates(cluster_scope=template.cluster_scope)
        except ForbiddenError:
            raise ConfigError(str(error)) from error
        flag = "--cluster-template" if template.cluster_scope else "--template"
        known = f"there are: {', '.join(sorted(names))} ({flag})" if names else "there is none"
        raise ConfigError(
            f"{error}; {known}; sft render makes it, kubectl apply -k puts it there"
        ) from error


def _print(workflow: api.Object, output: str) -> None:
    from workflows.documents import to_json, to_yaml

    print((to_json if output == "json" else to_yaml)([workflow]), end="", flush=True)  # noqa: T201


def _parser() -> flags.Parser:
    parser = flags.Parser(
        prog="sft submit",
        usage="sft submit --data-uri URI [--model MODEL] [options]",
        description="Start a run of the pipeline on Argo Workflows, from its template there.",
        epilog=parameter_flags.EPILOG,
    )
    own = parser.add_argument_group("the run")
    flags.add_own(own, _RUN)
    parameter_flags.add_pairs(own)
    own.add_argument(
        "--label",
        action="append",
        metavar="KEY=VALUE",
        default=argparse.SUPPRESS,
        help="A label of the workflow; may be repeated.",
    )
    for name, text in {
        "watch": "Follow the run to its end; the exit code is the run's.",
        "dry_run": "Check everything and print the Workflow, and send nothing.",
    }.items():
        own.add_argument(
            flags.flag(name), dest=name, action="store_true", default=argparse.SUPPRESS, help=text
        )
    own.add_argument(
        *("-o", "--output"),
        choices=("yaml", "json"),
        metavar="yaml|json",
        default=argparse.SUPPRESS,
        help="Print the whole Workflow, not its name.",
    )
    cluster = parser.add_argument_group("the cluster")
    connection.add_template_flags(cluster, SFT)
    connection.add_flags(cluster)
    parameter_flags.add(parser, SFT)
    return parser
