"""The users' parameters on a command line: the same flags and the same file for every command."""

import argparse
from pathlib import Path
from typing import Any

from steps import flags
from steps.errors import UsageError
from workflows import values
from workflows.pipeline import Pipeline

EPILOG = "A parameter of the form --<step>-<field> has the short form --<field> where no other step has it."


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


def from_file(path: str | None) -> dict[str, Any]:
    """The parameters of a YAML file, by the names that stand there; none without a file."""
    if path is None:
        return {}
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--params: {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--params: {path}: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--params: {path}: not a mapping of names to values")
    return {str(name): value for name, value in found.items()}
