"""Objects as text that every reader of YAML takes for the same: 1.1, 1.2, and Go's; and files of it read.

PyYAML leaves `5e-06` unquoted, which Kubernetes then reads as a number and Argo refuses. Here a string
is plain only where no reader could take it for anything else.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from steps.errors import UsageError, volume_error

# No reader resolves what begins with a letter or a slash and goes on like this, but for these words.
_PLAIN = re.compile(r"[A-Za-z/][\w./@+*-]*(:[\w./@-]+)*( [\w./(@-][\w./(),;@+*-]*)*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_ORDER = ("apiVersion", "kind", "name", "metadata")
"""Keys that come first, as people read them; the others stand as they were put."""


def to_yaml(objects: Iterable[Mapping[str, Any]]) -> str:
    """The objects as a stream of documents."""
    return "---\n".join(
        yaml.dump(
            _ordered(each), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
        )
        for each in objects
    )


def to_json(objects: Iterable[Mapping[str, Any]]) -> str:
    """The objects as one JSON document: a List where there are several."""
    every = [_ordered(each) for each in objects]
    whole = every[0] if len(every) == 1 else {"apiVersion": "v1", "kind": "List", "items": every}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def from_file(path: Path) -> dict[str, Any]:
    """The names and values that a YAML file holds, if any; UsageError at its line where it does not."""
    try:
        found = from_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise volume_error(error) or UsageError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = _line(error)
        raise UsageError(f"{path}{f':{line}' if line else ''}: {fault(error)}") from error
    if not isinstance(found, dict | None):
        raise UsageError(f"{path}: not a mapping of names to values")
    return {str(name): value for name, value in (found or {}).items()}


def fault(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong with a text that is no YAML, without its place."""
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(part for part in (error.context, error.problem) if part)
    return f"not YAML: {getattr(error, 'reason', error)}"


def _line(error: Exception) -> int | None:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None


def from_yaml(text: str) -> Any:
    """What the document holds; a number's `str` is as it was written, and a date is text.

    A version of `1.10` would else be taken for 1.1. Raises yaml.YAMLError.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe one)


class _Loader(yaml.CSafeLoader):
    """Numbers that know how they were written, and no name that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping; YAML's own reader would let the last value of a name win."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Float(float):
    written: str

    def __str__(self) -> str:
        return self.written


class _Int(int):
    written: str

    def __str__(self) -> str:
        return self.written


def _float(loader: _Loader, node: Any) -> _Float:
    number = _Float(loader.construct_yaml_float(node))
    number.written = node.value
    return number


def _int(loader: _Loader, node: Any) -> _Int:
    number = _Int(loader.construct_yaml_int(node))
    number.written = node.value
    return number


def _as_written(dumper: yaml.SafeDumper, number: _Float | _Int) -> yaml.ScalarNode:
    tag = "float" if isinstance(number, float) else "int"
    return dumper.represent_scalar(f"tag:yaml.org,2002:{tag}", number.written)


for kind in (_Float, _Int):
    yaml.add_representer(kind, _as_written, Dumper=yaml.SafeDumper)
yaml.add_constructor("tag:yaml.org,2002:float", _float, Loader=_Loader)
yaml.add_constructor("tag:yaml.org,2002:int", _int, Loader=_Loader)
yaml.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_str, Loader=_Loader)


class _Dumper(yaml.CSafeDumper):
    """Without anchors, and with strings quoted where they must be."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Always: no one wants to read `*id001`."""
        return True


def _text(dumper: "_Dumper", text: str) -> yaml.ScalarNode:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        style = None
    elif "\n" in text and all(line == line.rstrip() for line in text.split("\n")):
        style = "|"
    elif text.isascii() and text.isprintable() and '"' in text and "'" not in text:
        style = "'"
    else:
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _ordered(value: Any) -> Any:
    """The same with the keys that name a thing first, and without what is None."""
    if isinstance(value, Mapping):
        first = [key for key in _ORDER if key in value]
        rest = [key for key in value if key not in first]
        return {str(key): _ordered(value[key]) for key in first + rest if value[key] is not None}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, str):
        return str(value)  # an enumeration's member is its text
    return value
