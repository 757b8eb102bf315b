"""The users' parameters on a command line: the same flags for every command."""

import argparse
from collections.abc import Sequence

from steps import flags
from workflows import values
from workflows.pipeline import Pipeline

EPILOG = "A parameter of the form --<step>-<field> has the short form --<field> where no other step has it."


def add_pairs(group: argparse._ArgumentGroup) -> None:
    """Add `-p NAME=VALUE`, as `argo submit` has it."""
    group.add_argument(
        *("-p", "--parameter"),
        dest="parameter",
        action="append",
        metavar="NAME=VALUE",
        default=argparse.SUPPRESS,
        help="A parameter by any of its names; may be repeated.",
    )


def pairs(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What -p gives: the value may be empty, and have more equals signs."""
    found, problems = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if name and equals:
            found[name] = value
        else:
            problems.append(f"-p: {word!r} is not NAME=VALUE")
    return found, problems


def add(parser: argparse.ArgumentParser, pipeline: Pipeline) -> None:
    """Add a flag for every parameter, in a group a step; secrets of several steps have one for all."""
    groups = {
        step.name: parser.add_argument_group(step.name, step.params.__doc__)
        for step in pipeline.steps
    }
    for names in values.names(pipeline):
        parameter = names.parameter
        spellings = [names.short, names.long] if names.short else [names.long]
        flags.add(
            groups[parameter.step.name],
            parameter.name,
            parameter.field,
            *(flags.flag(spelling) for spelling in spellings),
        )
    secret = parser.add_argument_group("secrets of several steps")
    for field, parameters in values.shared_secrets(pipeline).items():
        flags.add(secret, field, parameters[0].field)
