"""Rendered text: what is written as text is read as that text, by every reader of YAML."""

import json
import random
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from workflows.documents import to_json, to_yaml

AWKWARD = [
    *(
        "5e-06",
        "1e3",
        "1E5",
        "08",
        "0x1F",
        "0X1F",
        "0o17",
        "0b1",
        "1_0",
        "1_0e3",
        "+.5",
        "-.5",
        ".5",
    ),
    *("1.", "0.1", "-1", "+1", ".inf", "-.Inf", ".nan", ".NAN", "inf", "NaN", "~", "null", "Null"),
    *("NULL", "yes", "Yes", "NO", "on", "Off", "y", "Y", "n", "true", "True", "FALSE", "12:30:45"),
    *(
        "190:20:30",
        "2026-01-01",
        "2026-01-01T00:00:00Z",
        "<<",
        "=",
        "",
        " ",
        " a ",
        "a ",
        " a",
        "a: b",
    ),
    *(
        "a:",
        ":a",
        "a:b",
        "#x",
        "a #x",
        "a#x",
        "- x",
        "-",
        "-x",
        "? x",
        "?",
        "{{x}}",
        "{a: b}",
        "[a]",
    ),
    *(
        "]",
        "}",
        ",",
        "a, b",
        "@x",
        "`x",
        "%x",
        "!x",
        "!!str x",
        "&x",
        "*x",
        "|",
        ">",
        "|-",
        "'",
        "''",
    ),
    *(
        '"',
        '""',
        "it's",
        'say "hi"',
        "'a\"",
        "\\",
        "a\\nb",
        "---",
        "...",
        "--- x",
        "... x",
        "😀",
        "é",
    ),
    *(
        "漢字",
        "\u00a0",
        "\u00ad",
        "\u0085",
        "\u2028x",
        "\ufeff",
        "a\tb",
        "\t",
        "\ta",
        "a\r\nb",
        "a\rb",
    ),
    *(
        "\n",
        "\n\n",
        "a\n",
        "a\n\n",
        "\na",
        "a\nb",
        "a \nb",
        "a\n b",
        " a\nb",
        "\n a\n",
        "a\n\n\nb\n",
    ),
    *(
        "a\nb \n",
        "a\n\t\nb",
        "#a\nb",
        "- a\n- b",
        "25921e05",
        "00000001",
        "1e1000",
        "123_456",
        "0.",
        "e",
    ),
    *(
        "x" * 300,
        "word " * 100,
        "sha256:" + "0" * 64,
        "hf://org/name:config@1e3",
        "64Gi",
        "500m",
        "4",
    ),
    *(
        "{{=1}}",
        "$(HOME)",
        "quay.io/a:5000/b",
        "key: |\n  text\n",
        "a: 'b'\n",
        "# a\n",
        "%YAML 1.2",
    ),
    *("\x07", "\x1b[0m", "\x7f", "😀\n😀", "\u200d", "a\u2029b", "🏴\U000e0067\U000e007f"),
]


def pieces(seed: int) -> list[str]:
    """Strings of what readers of YAML look at."""
    numbers = random.Random(seed)
    alphabet = [
        "a",
        "e",
        "0",
        "1",
        ":",
        " ",
        "\n",
        "-",
        "#",
        "'",
        '"',
        "\\",
        ".",
        "_",
        "{",
        "&",
        "*",
    ]
    alphabet += [
        "é",
        "😀",
        ",",
        "[",
        "|",
        ">",
        "%",
        "@",
        "!",
        "?",
        "~",
        "/",
        "+",
        "\t",
        "yes",
        "(",
        "=",
    ]
    return ["".join(numbers.choices(alphabet, k=numbers.randint(1, 7))) for _ in range(400)]


TEXTS = list(dict.fromkeys([*AWKWARD, *pieces(1)]))


def document(texts: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "texts"},
        "data": {f"k{number}": text for number, text in enumerate(texts)},
        "binaryData": dict.fromkeys(texts, ""),
        "list": texts,
    }


def test_pyyaml_reads_the_same_text() -> None:
    made = document(TEXTS)
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        assert yaml.load(to_yaml([made]), Loader=loader) == made


def test_a_reader_of_yaml_1_2_reads_the_same_text() -> None:
    made = document(TEXTS)
    for version in ("1.2", "1.1"):
        reader = YAML(typ="safe", pure=True)
        reader.version = version
        assert reader.load(to_yaml([made])) == made


def test_kubectl_reads_the_same_text() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on the PATH")
    made = document(TEXTS)
    told = subprocess.run(
        ["kubectl", "label", "--local", "--filename=-", "--output=json", "read=yes"],
        input=to_yaml([made]),
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(told.stdout)
    for name in ("data", "binaryData", "list"):
        assert read[name] == made[name]


def test_json_is_the_same_too_and_several_objects_are_a_list() -> None:
    made = document(TEXTS)
    assert json.loads(to_json([made])) == made
    assert json.loads(to_json([made, made]))["items"] == [made, made]
    assert list(yaml.safe_load_all(to_yaml([made, made]))) == [made, made]


def test_numbers_and_flags_stay_what_they_are_and_nothing_is_left_out_but_none() -> None:
    made: dict[str, Any] = {"kind": "X", "a": [1, 0.5, True, False], "b": {}, "c": [], "d": None}
    read = yaml.safe_load(to_yaml([made]))
    assert read == {"kind": "X", "a": [1, 0.5, True, False], "b": {}, "c": []}
    assert [type(each) for each in read["a"]] == [int, float, bool, bool]


def test_what_people_read_first_comes_first_and_lines_of_text_stay_lines() -> None:
    made: dict[str, Any] = {"spec": {"z": "a\nb\n", "name": "x"}, "kind": "K", "apiVersion": "v1"}
    assert to_yaml([made]) == ("apiVersion: v1\nkind: K\nspec:\n  name: x\n  z: |\n    a\n    b\n")
