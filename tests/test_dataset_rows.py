"""Which rows are taken, what becomes of them, and what is said of those that are not."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from steps.dataset import chats
from steps.errors import DataError
from tests.dataset_runs import chat, check, one, prepare, read, rows, turns, write

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 1.0}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"n": {"type": "number"}}}}


def refusal(tmp_path: Path, row: Any) -> str:
    """What is said of a row that comes after a good one."""
    path = write(tmp_path / "in.jsonl", [chat(1), row])
    with pytest.raises(DataError) as refused:
        prepare(tmp_path / "run", path)
    assert not (tmp_path / "run" / "dataset" / "train.jsonl").exists()
    place, _, reason = str(refused.value).splitlines()[0].partition(": ")
    assert place == f"{path}:2"
    return reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"messages": [', "not JSON: the line ends early"),
        ("plain text", "not JSON"),
        ("[1]", "a row must be a JSON object, not a list"),
        ("{}", "missing 'messages' or 'conversations' field; the row has the keys: none"),
        (
            {"text": "x", "id": 1},
            "missing 'messages' or 'conversations' field; the row has the keys: text, id",
        ),
        ({"messages": []}, "'messages' is empty"),
        (
            {"messages": None, "id": 1},
            "missing 'messages' or 'conversations' field; the row has the keys: messages (null), id",
        ),
        ({"messages": "hello"}, "messages must be a list, not text"),
        ({"messages": [3]}, "messages[0] must be an object, not a number"),
        ({"messages": [{"content": "x"}]}, "messages[0]: no 'role'; it has the keys: content"),
        ({"messages": turns("only a question")}, "no assistant turn"),
        (
            {"messages": [*turns("q", "a"), {"role": "robot", "content": "x"}]},
            "messages[2]: invalid role 'robot'",
        ),
        ({"messages": turns("", "answer")}, "messages[0]: the content of this user turn is empty"),
        (
            {"messages": turns("q", " \n")},
            "messages[1]: the content of this assistant turn is empty",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": None},
                ]
            },
            "messages[1]: the content of this assistant turn is null",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant"}]},
            "messages[1]: the content of this assistant turn is null",
        ),
        (
            {"messages": [{"role": "user", "content": 7}, *turns("q", "a")[1:]]},
            "messages[0]: the content must be text, not a number",
        ),
        (
            {"messages": [{"role": "tool", "content": "4"}, *turns("q", "a")]},
            "a tool turn follows nothing",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages[0]: a tool call without the name of a function",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0]: a part of the content is of type 'image_url'",
        ),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        ('{"messages": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"messages": ' + "[" * 1000 + "]" * 1000 + "}", "nested too deeply"),
        (
            {"messages": [{"role": "user", "content": "", "thinking": "x"}, *turns("q", "a")]},
            "messages[0]: the content of this user turn is empty",
        ),
        (
            {"messages": [{"role": "user", "tool_calls": [CALL]}, *turns("q", "a")]},
            "messages[0]: the content of this user turn is null",
        ),
        ({"prompt": "q", "completion": ""}, "'completion' is empty"),
        (
            {"prompt": "q", "completion": "a", "label": False},
            "'label' is false: the completion is one to avoid",
        ),
        ({"instruction": "q", "output": ""}, "'output' is empty"),
        (
            {"messages": [*turns("q"), {**turns("", "a")[1], "weight": 0}]},
            "each assistant turn has 'weight' 0",
        ),
        (
            {"messages": [*turns("q"), {**turns("", "a")[1], "weight": 0.5}]},
            "messages[1].weight must be 0 or 1",
        ),
        ({"messages": turns("q", "a"), "unmask": "yes"}, "'unmask' must be true or false"),
        ({"messages": turns("q", "a"), "tools": [1]}, "tools must be an object, not a number"),
    ],
)
def test_an_invalid_row_is_named_by_file_line_and_reason(
    tmp_path: Path, row: Any, reason: str
) -> None:
    assert refusal(tmp_path, row).startswith(reason)


@pytest.mark.parametrize("word", [b"answer", b"unread"])
def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path, word: bytes) -> None:
    path = write(tmp_path / "in.jsonl", [chat(1) | {"id": "unread"}])
    path.write_bytes(path.read_bytes() + path.read_bytes().replace(word, b"\xff"))
    with pytest.raises(DataError, match=r"in\.jsonl:2: not UTF-8: byte 0xff at column"):
        prepare(tmp_path / "run", path)


def test_all_faults_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(n) if n % 2 else {"n": n} for n in range(60)])
    with pytest.raises(DataError) as refused:
        prepare(tmp_path / "run", path)
    told = str(refused.value).splitlines()
    assert [line.split(":")[1] for line in told[:20]] == [str(n) for n in range(1, 40, 2)]
    assert told[20] == "and 10 more"
    assert told[21].startswith("30 of 60 rows are invalid")


def test_a_fault_behind_the_first_hundred_rows_is_found(tmp_path: Path) -> None:
    robot = {"messages": [{"role": "robot", "content": "x"}]}
    path = write(tmp_path / "in.jsonl", [*map(chat, range(100)), robot])
    with pytest.raises(DataError, match=r"in\.jsonl:101: messages\[0\]: invalid role 'robot'"):
        prepare(tmp_path / "run", path)


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(1), "", "  ", chat(2), "\r", {"x": 1}])
    with pytest.raises(DataError, match=r"in\.jsonl:6: .*\n1 of 3 rows are invalid"):
        prepare(tmp_path / "run", path)


def test_skipping_puts_invalid_rows_aside_with_their_reasons(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(1), {"text": "é"}, chat(2), "{broken", chat(3)])
    result = prepare(tmp_path / "run", path, on_invalid="skip")
    rejected = read(tmp_path / "run" / "dataset" / "rejected.jsonl")
    assert [(row["file"], row["line"], row["row"]) for row in rejected] == [
        (str(path), 2, {"text": "é"}),
        (str(path), 4, "{broken"),
    ]
    assert rejected[0]["reason"].startswith("missing 'messages'")
    assert result.metrics["rows_read"] == 5
    assert result.metrics["rows_rejected"] == 2
    assert len(rows(tmp_path / "run")) == 3
    assert (
        result.outputs["rejected"].bytes == (tmp_path / "run/dataset/rejected.jsonl").stat().st_size
    )


def test_skipping_every_row_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match="no row is valid"):
        prepare(tmp_path / "run", path, on_invalid="skip")
    assert not (tmp_path / "run" / "dataset" / "rejected.jsonl").exists()


def test_a_plain_chat_becomes_one_compact_line(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "messages": [{"content": "h\u00e9\n\u2028", "role": "user"}, *turns("", "a")[1:]],
    }
    one(tmp_path, json.dumps(row))
    written = (tmp_path / "dataset" / "train.jsonl").read_bytes().decode()
    assert written == (
        '{"messages":[{"role":"user","content":"hé\\n\u2028"},{"role":"assistant","content":"a"}]}\n'
    )


def test_conversations_become_messages(tmp_path: Path) -> None:
    assert one(tmp_path, {"conversations": turns("q", "a")}) == {"messages": turns("q", "a")}


def test_sharegpt_becomes_messages_with_its_system_prompt(tmp_path: Path) -> None:
    row = {
        "system": "be brief",
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    }
    assert one(tmp_path, row)["messages"] == [
        {"role": "system", "content": "be brief"},
        *turns("q", "a"),
    ]


def test_messages_win_over_conversations_and_other_schemas(tmp_path: Path) -> None:
    row = {
        "conversations": turns("no", "no"),
        "messages": turns("q", "a"),
        "prompt": "no",
        "completion": "no",
    }
    assert one(tmp_path, row) == {"messages": turns("q", "a")}


def test_alpaca_becomes_messages(tmp_path: Path) -> None:
    row = {
        "instruction": "add",
        "input": "1 and 2",
        "output": "3",
        "system": "count",
        "history": [["hi", "hello"]],
    }
    assert one(tmp_path, row)["messages"] == [
        {"role": "system", "content": "count"},
        *turns("hi", "hello"),
        *turns("add\n1 and 2", "3"),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": turns("q"), "completion": [{"role": "assistant", "content": "a"}]},
        # As a table holds them.
        {
            "prompt": json.dumps(turns("q")),
            "completion": json.dumps([{"role": "assistant", "content": "a"}]),
        },
    ],
)
def test_prompt_and_completion_become_messages(tmp_path: Path, row: dict[str, Any]) -> None:
    assert one(tmp_path, row) == {"messages": turns("q", "a")}


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("name the turns", json.dumps(turns("q", "a"))),
        (json.dumps(turns("q", "a")), "two turns"),
        ("[1] and [2]", "[1]"),
        ("[1, 2]", "[3]"),
    ],
)
def test_text_that_only_looks_like_messages_stays_text(
    tmp_path: Path, prompt: str, completion: str
) -> None:
    row = {"prompt": prompt, "completion": completion}
    assert one(tmp_path, row)["messages"] == turns(prompt, completion)


def test_a_developer_is_a_system(tmp_path: Path) -> None:
    row = {"messages": [{"role": "developer", "content": "d"}, *turns("q", "a")]}
    assert one(tmp_path, row)["messages"][0] == {"role": "system", "content": "d"}


def test_parts_of_text_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {"messages": [{"role": "user", "content": parts}, *turns("", "a")[1:]]}
    assert one(tmp_path, row)["messages"][0]["content"] == "one two"


def test_null_content_of_a_tool_call_becomes_empty_and_the_call_keeps_its_bytes(
    tmp_path: Path,
) -> None:
    calls = '[{"type": "function", "function": {"name": "f", "arguments": {"n": 1.50, "big": 12345678901234567890123, "e": 1E2, "null": null}}}]'
    row = (
        '{"tools": [{"type": "function",  "function": {"name": "f"}}], "unmask": true, "messages": ['
        '{"role": "user", "content": "q"}, '
        f'{{"role": "assistant", "content": null, "tool_calls": {calls}}}, '
        '{"role": "tool", "content": "", "tool_call_id": "c1", "name": "f"}, '
        '{"role": "assistant", "content": "done", "reasoning_content": "r", "weight": 1}]}'
    )
    found = one(tmp_path, row)
    written = (tmp_path / "dataset" / "train.jsonl").read_text()
    assert '"content":"","tool_calls":[' in written
    assert calls[1:-1] in written
    assert '{"type": "function",  "function": {"name": "f"}}' in written
    assert found["unmask"] is True
    assert found["messages"][2] == {
        "role": "tool",
        "content": "",
        "name": "f",
        "tool_call_id": "c1",
    }
    assert found["messages"][3] == {
        "role": "assistant",
        "content": "done",
        "reasoning_content": "r",
    }


def test_a_turn_that_is_not_to_be_learnt_keeps_its_weight(tmp_path: Path) -> None:
    said = [turn | {"weight": weight} for turn, weight in zip(turns(*"abcd"), "0011", strict=True)]
    said[1]["weight"], said[3]["weight"] = 0, 1.0
    found = one(tmp_path, {"messages": said})["messages"]
    assert found == [*turns("a"), turns("", "b")[1] | {"weight": 0}, *turns("c", "d")]


@pytest.mark.parametrize("called", [True, False])
def test_functions_of_older_data_sets_are_the_tools(tmp_path: Path, called: bool) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    function = '{"name": "f", "parameters": {"n": 1.0e2}}'
    said = [*turns("q"), call] if called else turns("q", "a")
    row = json.dumps({"messages": said, "functions": [0]})
    one(tmp_path, row.replace("[0]", f"[{function}]"))
    line = (tmp_path / "dataset" / "train.jsonl").read_text()
    assert line.endswith(f',"tools":[{{"type":"function","function":{function}}}]}}\n')


def test_a_turn_of_sharegpt_may_call_several_functions(tmp_path: Path) -> None:
    calls = [{"name": "f", "arguments": {"n": 1}}, {"name": "g", "arguments": {}}]
    said = [
        ("human", "q"),
        ("function_call", json.dumps(calls)),
        ("observation", "4"),
        ("gpt", "a"),
    ]
    row = {"conversations": [{"from": who, "value": text} for who, text in said]}
    found = one(tmp_path, row)["messages"][1]
    assert found["tool_calls"] == [{"type": "function", "function": call} for call in calls]


def test_older_function_calls_become_tool_calls(tmp_path: Path) -> None:
    function = {"name": "f", "arguments": "{}"}
    sharegpt = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "four"},
    ]
    openai = [
        *turns("q"),
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "four"},
    ]
    expected = one(tmp_path / "a", {"conversations": sharegpt, "tools": json.dumps([TOOL])})
    assert expected["messages"][1]["tool_calls"] == [{"type": "function", "function": function}]
    assert expected["tools"] == [TOOL]
    assert one(tmp_path / "b", {"messages": openai, "tools": [TOOL]}) == expected


def test_messages_that_stand_as_text_are_read(tmp_path: Path) -> None:
    assert one(tmp_path, {"messages": json.dumps(turns("q", "a"))}) == {"messages": turns("q", "a")}
    texts = [json.dumps(turn) for turn in turns("q", "a")]
    assert one(tmp_path, {"messages": texts}) == {"messages": turns("q", "a")}


def test_nulls_beside_the_content_are_left_out(tmp_path: Path) -> None:
    row = {
        "messages": [turn | {"tool_calls": None, "name": None} for turn in turns("q", "a")],
        "tools": None,
    }
    assert one(tmp_path, row) == {"messages": turns("q", "a")}


SEEDS = [
    {"messages": [{"role": "system", "content": "é 😀"}, *turns('q\n"x"', "a")], "id": 1},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
            {"role": "assistant", "content": "four", "reasoning_content": "r"},
        ],
        "tools": [TOOL],
    },
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "", "output": "o", "history": [["q", "a"]]},
    {"prompt": turns("q"), "completion": "a"},
]
PARTS = [b"null", b"[]", b"{}", b'""', b"1E+400", b"NaN", b"\\ud800", b"\xff", b"[" * 9, b'"', b"\\", b"\0"]  # fmt: skip


def mutated(numbers: random.Random, row: bytearray) -> bytes:
    """The row with a few of its bytes changed, cut out, repeated or put in."""
    for _ in range(numbers.randint(1, 3)):
        start = numbers.randrange(len(row))
        end = start + numbers.randint(0, 12)
        change = numbers.randrange(4)
        if change == 0:
            row[start] = numbers.randrange(256)
        elif change == 1:
            row[start:end] = numbers.choice(PARTS)
        elif change == 2:
            row[start:start] = row[start:end]
        else:
            del row[start:end]
    return bytes(row).replace(b"\n", b"")


def test_whatever_a_row_is_it_is_refused_with_a_reason_or_becomes_canonical() -> None:
    numbers = random.Random(7)
    taken = 0
    for _ in range(20_000):
        seed = json.dumps(numbers.choice(SEEDS), ensure_ascii=False)
        row = mutated(numbers, bytearray(seed.encode()))
        read = chats.read([row], rewrite=True)
        if not read.rewritten:
            assert not row.strip() or [bool(found.reason) for found in read.rejected] == [True]
            continue
        taken += 1
        (line,) = read.rewritten
        found = json.loads(line)
        assert line.find(b"\n") == len(line) - 1
        assert {"messages"} <= set(found) <= {"messages", "tools", "unmask"}, row
        assert all(isinstance(message["content"], str) for message in found["messages"])
        assert chats.read([line], rewrite=True) == read, row
        assert chats.read([line]).places == bytes([chats.AS_IS]), row
    assert taken > 500


def test_a_row_stays_as_it_is_only_if_it_is_the_canonical_one() -> None:
    numbers = random.Random(5)
    turn, swapped = (
        '{"role":"%(role)s","content":"%(text)s"}',
        '{"content":"%(text)s","role":"%(role)s"}',
    )
    seen = {False: 0, True: 0}
    for _ in range(20_000):
        said = (
            numbers.choices([turn, swapped], [9, 1])[0]
            % {"role": role, "text": numbers.choice(["a", r"a\n", r"\u0061", "é", "x" * 9])}
            for role in ("user", "assistant")
        )
        row = f'{{"messages":[{",".join(said)}]}}'
        line = row.encode() if numbers.random() < 0.5 else mutated(numbers, bytearray(row.encode()))
        if rewritten := chats.read([line], rewrite=True).rewritten:
            line += b"\n"
            as_is = rewritten == [line]
            assert (chats.read([line]).places == bytes([chats.AS_IS])) is as_is, line
            seen[as_is] += 1
    assert min(seen.values()) > 3_000


SCHEMAS: dict[str, dict[str, Any]] = {
    "messages": {"messages": turns("q", "a")},
    "conversations": {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    },
    "alpaca": {"instruction": "q", "output": "a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_can_be_insisted_on(tmp_path: Path, schema: str) -> None:
    path = write(tmp_path / "in.jsonl", [SCHEMAS[schema]])
    check(tmp_path / "run", path, chat_schema=schema)
    prepare(tmp_path / "run", path, chat_schema=schema)
    assert rows(tmp_path / "run") == [SCHEMAS["messages"]]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_row_of_another_schema_is_then_at_fault(tmp_path: Path, schema: str) -> None:
    others = [row for name, row in SCHEMAS.items() if name != schema]
    path = write(tmp_path / "in.jsonl", [SCHEMAS[schema], *others])
    for run in (check, prepare):
        with pytest.raises(DataError) as refused:
            run(tmp_path / "run", path, chat_schema=schema)
        wanted = " and ".join(map(repr, SCHEMAS[schema]))
        for line, (row, told) in enumerate(
            zip(others, str(refused.value).splitlines(), strict=False), start=2
        ):
            assert told == (
                f"{path}:{line}: missing {wanted} for the schema {schema}; "
                f"the row has the keys: {', '.join(row)}"
            )


def test_of_several_schemas_in_a_row_the_one_asked_for_is_read(tmp_path: Path) -> None:
    row: dict[str, Any] = {"prompt": "p", "completion": "c", "instruction": "i", "output": "o"}
    row |= {"conversations": turns("x", "y"), "messages": turns("q", "a")}
    path = write(tmp_path / "in.jsonl", [row])
    answers = {"auto": "a", "messages": "a", "conversations": "y", "alpaca": "o"}
    for schema, answer in {**answers, "prompt_completion": "c"}.items():
        prepare(tmp_path / "run", path, chat_schema=schema)
        [found] = rows(tmp_path / "run")
        assert found["messages"][-1]["content"] == answer
