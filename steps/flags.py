"""A command line from pydantic models: every field a flag, every mistake told at once.

The stock bridges cut values at a newline, refuse `null`, and stop at the first mistake; this one
hands each value to pydantic as the engine wrote it and reports all that is wrong in one message.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from steps.errors import UsageError
from steps.params import (
    CLUSTER,
    FURTHER,
    MAN,
    choices,
    is_secret,
    marked,
    may_hold_secret,
    type_name,
)

Model = TypeVar("Model", bound=BaseModel)


PREFIX = "SFT_"
"""Begins the environment variables that carry parameters."""


def flag(name: str) -> str:
    """The flag of a field: its name in kebab-case."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable that carries a field which may hold a secret (`may_hold_secret`)."""
    return f"{PREFIX}{name.upper()}"


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of leaving, and never guesses a shortened flag."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError (exit code 64) with argparse's message."""
        raise UsageError(message)


def add(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    name: str,
    field: FieldInfo,
    *names: str,
) -> None:
    """Add a field as a flag; `names` replaces the flag that its name would give."""
    kind = type_name(field)
    if kind == "bool":
        # A bare flag means true; an engine writes the value out.
        extra: dict[str, Any] = {"nargs": "?", "const": "true"}
    else:
        extra = {}
    limited = choices(field)
    parser.add_argument(
        *(names or (flag(name),)),
        dest=name,
        default=argparse.SUPPRESS,
        metavar="|".join(limited) if limited else kind.upper(),
        help=describe(field).replace("%", "%%"),
        **extra,
    )


def add_own(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, own: Mapping[str, tuple[str, str]]
) -> None:
    """Add flags of a command that are no fields: by name, what stands for the value, and the help."""
    for name, (value, text) in own.items():
        parser.add_argument(
            flag(name), dest=name, metavar=value, default=argparse.SUPPRESS, help=text
        )


def describe(field: FieldInfo) -> str:
    """The field's help line: meaning, default, and whether only a cluster can serve it."""
    text = " ".join((field.description or "").split())
    if marked(field, CLUSTER):
        text += " [cluster]"
    if field.is_required():
        return f"{text} (required)"
    default = shown_default(field)
    return f"{text} (default: {default})" if default else text


def shown_default(field: FieldInfo) -> str:
    """The default as a user would type it; empty for none, empty text and secrets."""
    value = field.get_default(call_default_factory=True)
    if value in (None, "", PydanticUndefined) or is_secret(field):
        return ""
    return as_text(value)


def as_text(value: Any) -> str:
    """A value as flags, engine parameters and tables write it: text as it is, the rest as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool | float):
        return str(value)
    return json.dumps(value, default=_fields)


def _fields(value: Any) -> Any:
    if not isinstance(value, BaseModel):
        raise TypeError(f"{value!r} is not JSON")
    return value.model_dump(mode="json")


def from_text(text: str, field: FieldInfo) -> Any:
    """A flag's text as pydantic shall see it. Lists and dicts are JSON; `a,b` and `k=v,k=v` too."""
    kind = type_name(field)
    if kind not in ("list", "dict"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if text.lstrip().startswith(("[", "{")):
            return text
    items = [item.strip() for item in text.split(",") if item.strip()]
    if kind == "list":
        return items
    if not all("=" in item for item in items):
        return text
    pairs = (item.split("=", 1) for item in items)
    return {key.strip(): _json_or_text(value) for key, value in pairs}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def step_parser(
    params: type[BaseModel], bound: type[BaseModel], prog: str, has_dry_run: bool
) -> argparse.ArgumentParser:
    """The parser of a step's command, its flags in groups."""
    parser = Parser(prog=prog, description=params.__doc__)
    first = parser.add_argument_group("parameters")
    more = parser.add_argument_group("further parameters")
    secrets = [
        f"{variable(name)}  {describe(field)}"
        for name, field in params.model_fields.items()
        if is_secret(field)
    ]
    if secrets:
        parser.add_argument_group("secrets, from the environment only", "\n".join(secrets))
    others = [
        f"{variable(name)}  in place of {flag(name)}"
        for name, field in params.model_fields.items()
        if may_hold_secret(field) and not is_secret(field)
    ]
    if others:
        parser.add_argument_group(
            "from the environment too, since flags stand in the process list", "\n".join(others)
        )
    engine = parser.add_argument_group("set by the engine")
    for name, field in params.model_fields.items():
        if is_secret(field):
            continue
        group = first if marked(field, MAN) else more
        if marked(field, FURTHER):
            group = more
        add(group, name, field)
    for name, field in bound.model_fields.items():
        if name not in params.model_fields:
            add(engine, name, field)
    modes = engine.add_mutually_exclusive_group()
    modes.add_argument(
        "--check",
        action="store_true",
        help="do what can be known without the work, write nothing, and leave",
    )
    if has_dry_run:
        modes.add_argument(
            "--dry-run",
            action="store_true",
            help="say from the data what the work will be, and what would be started or sent; "
            "write nothing, and leave",
        )
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str], known: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The flags that were given, by field name, and what is wrong with the rest."""
    words, problems = list(argv), []
    while True:
        try:
            found, unknown = parser.parse_known_args(words)
            break
        except argparse.ArgumentError as error:  # of one flag; the others are looked at without it
            problems.append(str(error).removeprefix("argument "))
            spellings = (error.argument_name or "").split("/")
            left = _without(words, spellings)
            if left == words:
                raise UsageError(str(error)) from None
            words = left
    after_unknown = False
    for word in unknown:
        if word.startswith("-"):
            name = word.split("=", 1)[0]
            problems.append(f"{name} is not a flag{_meant(name, known)}")
        elif not after_unknown:
            problems.append(f"{word!r} belongs to no flag")
        after_unknown = word.startswith("-") and "=" not in word
    return vars(found), problems


def _without(words: Sequence[str], spellings: Sequence[str]) -> list[str]:
    """The words without that flag, and without its value where that is a word of its own."""
    left, is_value = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if name in spellings:
            is_value = not equals
        elif is_value and not word.startswith("-"):
            is_value = False
        else:
            is_value = False
            left.append(word)
    return left


def nearest(name: str, known: Sequence[str], longer: Sequence[str]) -> str:
    """What the word may have been meant for, to go on with: a very near one, a longer one, a near one."""
    import difflib  # its import would slow every --help

    near = (
        difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        or longer
        or difflib.get_close_matches(name, known, n=1)
    )
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _meant(name: str, known: Sequence[str]) -> str:
    ending = f"-{name.lstrip('-')}"
    return nearest(name, known, [flag for flag in known if flag.endswith(ending)])


def validate(
    model: type[Model],
    given: Mapping[str, Any],
    label: Mapping[str, str] | None = None,
    *,
    partial: bool = False,
) -> tuple[Model | None, list[str]]:
    """The model made of the values that fit, and what is wrong with the others, named by their flags.

    None where a required one is left out by that. Of `partial` values, which others will complete,
    none is missed.
    """
    values = {
        name: from_text(value, model.model_fields[name])
        if isinstance(value, str) and name in model.model_fields
        else value
        for name, value in given.items()
    }
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        problems = error.errors()
        told = [
            _told(problem, model, label or {})
            for problem in problems
            if not (partial and problem["type"] == "missing")
        ]
        wrong = {problem["loc"][0] for problem in problems if problem["loc"]}
        rest = {name: value for name, value in values.items() if name not in wrong}
        return (validate(model, rest)[0] if len(rest) < len(values) else None), told


def _told(problem: Any, model: type[BaseModel], label: Mapping[str, str]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    shown = label.get(name, flag(name)) if name else model.__name__
    if problem["type"] == "missing":
        return missing(shown)
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    field = model.model_fields.get(name)
    if field is not None and problem["type"] == "string_pattern_mismatch":
        message = f"not as it must be ({' '.join((field.description or '').split()).rstrip('.')})"
    if field is not None and may_hold_secret(field):
        return f"{shown}: {message}"
    given = problem["input"]
    return f"{shown}: {message}, got {str(given) if isinstance(given, os.PathLike) else given!r}"


def missing(shown: str) -> str:
    """What is said of a required field without a value."""
    return f"{shown} is required"


def arguments(params: BaseModel) -> list[str]:
    """The argument list that gives the values that were set, but for what `environment` carries.

    Which of the two carries a field is decided by its declaration (`may_hold_secret`), never by its
    value, so an engine that knows no values yet divides its parameters in the same way.
    """
    fields = type(params).model_fields
    return [
        f"{flag(name)}={as_text(getattr(params, name))}"
        for name in fields
        if name in params.model_fields_set and not may_hold_secret(fields[name])
    ]


def environment(params: BaseModel) -> dict[str, str]:
    """The variables that give the other values that were set: those that may hold a secret.

    A step reads `variable(name)` of each such field; an empty one is an empty value, a missing one
    means the default. Fields that are no secrets by their type have a flag too, for people; it wins.
    """
    return {
        variable(name): as_text(getattr(params, name))
        for name, field in type(params).model_fields.items()
        if may_hold_secret(field) and name in params.model_fields_set
    }
