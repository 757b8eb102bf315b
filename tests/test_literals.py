"""Values on their way through Argo and the kubelet: which arrive as they were, and which are refused."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.argo_controller import ArgoError, Controller, go_quote
from workflows.literals import fault

PARAMETER = "phase_04_registry_opt_description"

# Every character of the Basic Multilingual Plane's first rows, and of all planes some.
CHARACTERS = [chr(code) for code in (*range(0x1100), *range(0x1100, sys.maxunicode, 211))]
CHARACTERS += [chr(code) for code in (0xD800, 0xDFFF, 0xFFFE, 0x1F600, 0xE0001, 0xE0067, 0x10FFFF)]

TEMPLATE: dict[str, Any] = {
    "spec": {
        "arguments": {"parameters": [{"name": PARAMETER, "value": ""}]},
        "templates": [
            {
                "name": "register",
                "podSpecPatch": "{}",
                "container": {
                    "command": ["python"],
                    "args": [f"--description={{{{workflow.parameters.{PARAMETER}}}}}"],
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "SFT_TEXT", "value": f"{{{{workflow.parameters.{PARAMETER}}}}}"},
                    ],
                },
            }
        ],
    }
}


def arrives(value: str) -> bool:
    """Whether the container gets the value unchanged, as an argument and as a variable."""
    controller = Controller(TEMPLATE, Path())
    try:
        container, _ = controller.pod("register", controller.scope({PARAMETER: value}))
        value.encode()
    except (ArgoError, UnicodeEncodeError):
        return False
    got = (container["argv"][-1], container["variables"]["SFT_TEXT"])
    return got == (f"--description={value}", value)


def test_characters_that_are_refused_are_those_that_would_not_arrive() -> None:
    for character in CHARACTERS:
        text = f"a{character}b"
        assert arrives(text) is (fault(text) is None), f"U+{ord(character):04X}"


def test_no_accepted_text_is_changed() -> None:
    numbers = random.Random(3)
    alphabet = [*"ab {}$()%\\\"'\n\t=:,[]&;`|<>*?!#~\r\b\f\a\v\x00\x7f", "é", "漢", "😀", "\u200d"]
    alphabet += ["{{", "}}", "$$", "$(HOME)", "{{workflow.uid}}", "\U000e0067", '{"a": 1}']
    accepted = 0
    for _ in range(8000):
        text = "".join(numbers.choices(alphabet, k=numbers.randint(0, 9)))
        if fault(text) is None:
            accepted += 1
            assert arrives(text), repr(text)
    assert accepted > 2000


@pytest.mark.parametrize(
    "text",
    ["{{workflow.uid}}", "{{=1 + 1}}", "$(HOME)", "costs $$5", "\x1b[1m", "\U000e0067"],
)
def test_text_that_would_be_changed_is_refused_with_what_to_do(text: str) -> None:
    assert not arrives(text)
    told = fault(text)
    assert told is not None
    assert told.endswith(("give its path", "leave it out"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " a ",
        'He said "hi"',
        "a\\nb",
        "line\nline\r\n",
        '{"a": {"b": [1]}}',
        "😀 é",
        "$HOME ${X}",
        "100%",
    ],
)
def test_ordinary_text_arrives(text: str) -> None:
    assert fault(text) is None
    assert arrives(text)


def test_a_text_too_long_for_an_argument_is_refused() -> None:
    assert fault("é" * 50_000) is None
    assert "longer than 100,000 bytes" in str(fault("é" * 50_001))


def test_quoting_is_that_of_go(tmp_path: Path) -> None:
    """The fault of a character follows from how Go quotes it; kubectl's templates are Go's."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on the PATH")
    # Characters that only newer versions of Unicode know are printed or not by the age of Go.
    text = "".join(
        each for each in CHARACTERS if ord(each) < 0x300 or ord(each) in (0x1F600, 0xE0067)
    )
    text = text.replace("\0", "") + "漢\u200d\u2028\ufeff\U000e0001\U0010ffff"
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    told = subprocess.run(
        [
            *("kubectl", "create", "configmap", "x", f"--from-file=text={path}"),
            *("--dry-run=client", '--output=go-template={{printf "%q" .data.text}}'),
        ],
        capture_output=True,
        check=True,
    )
    assert told.stdout.decode() == f'"{go_quote(text)}"'
    with pytest.raises(json.JSONDecodeError):
        json.loads(f'"{go_quote(chr(0xE0001))}"')
