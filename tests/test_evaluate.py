"""Evaluation on tiny models: the numbers against independent computations, the files, the refusals."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steps import files
from steps.entrypoint import Run
from steps.errors import DataError, UsageError
from steps.evaluate.__main__ import check, inputs, main
from steps.evaluate.params import EvaluateParams
from steps.params import Bound
from steps.record import Asset, Record, Result, now, read
from steps.tokens import ChatTokenizer
from steps.train.tokenize import write_tokens
from steps.workspace import Workspace
from tests.servers.hub import Hub
from tests.tiny import Architecture, make_model, make_tokenizer

CHATS: list[list[tuple[str, str]]] = [
    [("user", "What is the capital of France?"), ("assistant", "Paris.")],
    [
        ("system", "Answer in one word."),
        ("user", "one two three"),
        ("assistant", "four"),
        ("user", "five six"),
        ("assistant", "seven eight nine ten"),
    ],
    [("user", "Translate: water, bread, house, tree. " * 6), ("assistant", "water")],
    [("user", "?"), ("assistant", "The quick brown fox jumps over the lazy dog. " * 4)],
    [("user", "bread"), ("assistant", "house, tree")],
]


class Ground:
    """A run's folder as dataset and train leave it, with models that were never trained."""

    def __init__(self, root: Path, architecture: Architecture = "qwen2") -> None:
        self.workspace = Workspace(root / "run")
        self.base = make_model(root / "base", architecture, seed=1)
        make_model(self.workspace.model, architecture, seed=2)
        self.hold_out(CHATS)

    def hold_out(self, chats: list[list[tuple[str, str]]]) -> None:
        rows = [
            {"messages": [{"role": role, "content": content} for role, content in chat]}
            for chat in chats
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        files.write(self.workspace.eval_rows, lines)
        tokenizer = ChatTokenizer.load(self.workspace.model)
        write_tokens(self.workspace.eval_rows, self.workspace.eval_tokens, tokenizer)
        self._record(
            "dataset", outputs={"eval": Asset.of(self.workspace.eval_rows, self.workspace)}
        )
        self._record(
            "train",
            inputs={"base_model": Asset(path=str(self.base), uri="tiny/base")},
            outputs={"model": Asset.of(self.workspace.model, self.workspace)},
        )

    def _record(self, step: str, **assets: dict[str, Asset]) -> None:
        Record(
            step=step,
            status="done",
            fingerprint="",
            started=now(),
            finished=now(),
            seconds=0,
            parameters={},
            inputs=assets.get("inputs", {}),
            outputs=assets.get("outputs", {}),
            metrics={},
            versions={},
        ).write(self.workspace)

    def evaluate(self, **params: Any) -> Result:
        values = EvaluateParams.model_validate({"tasks": []} | params)
        run = Run(Bound(workspace=self.workspace.root))
        return main(values, replace(run, inputs=inputs(values, run)))

    @property
    def results(self) -> dict[str, Any]:
        return dict(json.loads(self.workspace.results.read_bytes()))

    @property
    def samples(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.workspace.samples.read_bytes().splitlines()]


def independent_loss(model: Path, tokens: Path) -> tuple[float, int]:
    """Mean negative log-likelihood of the labelled tokens, one row at a time, in plain torch."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    total, count = 0.0, 0
    for line in tokens.read_text().splitlines():
        row = json.loads(line)
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        with torch.no_grad():
            logits = loaded(input_ids=ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum"))
        count += int((labels[1:] != -100).sum())
    return total / count, count


def independent_answer(model: Path, ids: list[int], limit: int, stop_ids: list[int]) -> list[int]:
    """Greedy decoding of one prompt, without batch, padding or cache."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    written: list[int] = []
    with torch.no_grad():
        while len(written) < limit:
            logits = loaded(input_ids=torch.tensor([ids + written])).logits[0, -1]
            token = int(logits.argmax())
            if token in stop_ids:
                break
            written.append(token)
    return written


def teach(model: Path, tokens: Path, steps: int) -> None:
    """Train the model on these rows until it knows them by heart."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
    rows = [json.loads(line) for line in tokens.read_text().splitlines()]
    for _ in range(steps):
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            loaded(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded.save_pretrained(model)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt_neox"])
@pytest.mark.parametrize("batch", ["auto", "2"])
def test_loss_of_both_models_is_that_of_every_row_computed_alone(
    tmp_path: Path, architecture: Architecture, batch: str
) -> None:
    ground = Ground(tmp_path, architecture)
    result = ground.evaluate(heldout_limit=0, batch=batch)
    scores = ground.results["heldout"]
    for name, model in {"tuned": ground.workspace.model, "base": ground.base}.items():
        loss, tokens = independent_loss(model, ground.workspace.eval_tokens)
        assert scores[name]["loss"] == pytest.approx(loss, abs=1e-5)
        assert scores[name]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert (scores[name]["tokens"], scores[name]["rows"]) == (tokens, len(CHATS))
        assert (scores[name]["exact_match"], scores[name]["chrf"]) == (None, None)
    assert result.metrics["heldout_loss"] == scores["tuned"]["loss"]
    assert result.metrics["heldout_perplexity_base"] == scores["base"]["perplexity"]
    assert float(result.results["heldout-loss"]) == pytest.approx(scores["tuned"]["loss"], rel=1e-5)
    assert float(result.results["heldout-loss-base"]) == pytest.approx(
        scores["base"]["loss"], rel=1e-5
    )


def test_a_given_model_is_scored_alone_with_its_own_tokenizer_and_template(
    ground: Ground, tmp_path: Path
) -> None:
    template = (Path(__file__).parent / "templates" / "zephyr.jinja").read_text()
    given = make_model(tmp_path / "given", "llama", template, eos="</s>", vocabulary=300)
    ground.evaluate(model=str(given), heldout_limit=0)
    tokens = tmp_path / "tokens.jsonl"
    write_tokens(ground.workspace.eval_rows, tokens, ChatTokenizer.load(given))
    loss, _ = independent_loss(given, tokens)
    assert ground.results["heldout"].keys() == {"tuned"}
    assert ground.results["heldout"]["tuned"]["loss"] == pytest.approx(loss, abs=1e-5)


def test_a_given_model_is_scored_on_tasks_without_any_run(tmp_path: Path) -> None:
    given = make_model(tmp_path / "given", "llama")
    values = EvaluateParams(tasks=[str(make_task(tmp_path))], model=str(given))
    run = Run(Bound(workspace=tmp_path / "empty"))
    check(values, run)
    result = main(values, replace(run, inputs=inputs(values, run)))
    assert result.metrics["which_number.acc"] == which_number(given)
    assert result.results == {"heldout-loss": "", "heldout-loss-base": ""}


def test_rows_longer_than_the_models_positions_are_scored_up_to_their_end(
    ground: Ground, tmp_path: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=48,
            n_embd=32,
            n_layer=1,
            n_head=2,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    given = tmp_path / "given"
    model.save_pretrained(given)
    tokenizer.save_pretrained(given)
    ground.evaluate(model=str(given))
    tokens = tmp_path / "tokens.jsonl"
    rows = [json.loads(line) for line in ground.workspace.eval_tokens.read_text().splitlines()]
    assert max(len(row["input_ids"]) for row in rows) > 48
    cut = ({name: row[name][:48] for name in ("input_ids", "labels")} for row in rows)
    tokens.write_text("".join(json.dumps(row) + "\n" for row in cut))
    scores = ground.results["heldout"]["tuned"]
    assert scores["loss"] == pytest.approx(independent_loss(given, tokens)[0], abs=1e-5)
    assert len(ground.samples) == 6


def test_a_model_that_knows_the_answers_matches_every_turn_of_them(ground: Ground) -> None:
    ground.hold_out([chat for chat in CHATS if len(str(chat)) < 200])
    teach(ground.workspace.model, ground.workspace.eval_tokens, steps=50)
    result = ground.evaluate()
    scores = ground.results["heldout"]
    assert [(s["row"], s["turn"]) for s in ground.samples] == [(1, 1), (2, 2), (2, 4), (3, 1)]
    assert [s["tuned"] for s in ground.samples] == [s["expected"] for s in ground.samples]
    assert ground.samples[2]["prompt"][-2] == {"role": "assistant", "content": "four"}
    assert (scores["tuned"]["exact_match"], scores["tuned"]["chrf"]) == (1.0, 100.0)
    assert scores["base"]["exact_match"] == 0
    assert result.metrics["heldout_chrf"] > result.metrics["heldout_chrf_base"]
    assert result.metrics["heldout_loss"] < result.metrics["heldout_loss_base"] / 2


def test_answers_are_those_of_greedy_decoding_one_prompt_at_a_time(ground: Ground) -> None:
    teach(ground.workspace.model, ground.workspace.eval_tokens, steps=5)
    ground.evaluate(baseline="none", batch="4")
    tokenizer = ChatTokenizer.load(ground.workspace.model)
    rows = [json.loads(line) for line in ground.workspace.eval_rows.read_text().splitlines()]
    prompts = [prompt for row in rows for prompt in tokenizer.prompts(row)]
    for prompt, sample in zip(prompts, ground.samples, strict=True):
        limit = 2 * tokenizer.count(prompt.expected) + 16
        ids = independent_answer(ground.workspace.model, prompt.ids, limit, tokenizer.stop_ids)
        assert sample["tuned"] == tokenizer.decode(ids)
        assert "base" not in sample


def test_rows_for_answers_are_spread_evenly_and_the_loss_is_over_all(ground: Ground) -> None:
    chats = [[("user", str(n)), ("assistant", str(n))] for n in range(10)]
    ground.hold_out(chats)
    ground.evaluate(heldout_limit=4, baseline="none")
    assert [sample["row"] for sample in ground.samples] == [1, 3, 6, 8]
    assert ground.results["heldout"]["tuned"]["rows"] == 10
    ground.evaluate(heldout_limit=-1, baseline="none")
    assert len(ground.samples) == 10


def test_weights_that_are_no_numbers_are_told(ground: Ground) -> None:
    from safetensors.torch import load_file, save_file

    path = ground.workspace.model / "model.safetensors"
    weights = load_file(path)
    save_file({name: tensor * math.nan for name, tensor in weights.items()}, path)
    with pytest.raises(DataError, match="the held-out loss is nan"):
        ground.evaluate(baseline="none")
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match="cannot be loaded"):
        ground.evaluate(baseline="none")


def test_nothing_to_score_is_refused(ground: Ground) -> None:
    ground.hold_out([])
    with pytest.raises(UsageError, match="nothing would be evaluated"):
        ground.evaluate()
    with pytest.raises(UsageError, match="nothing would be evaluated"):
        ground.evaluate(tasks=["arc_easy"], limit=0)


def test_a_run_that_was_not_trained_is_told_what_to_do(tmp_path: Path) -> None:
    values, run = EvaluateParams(tasks=[]), Run(Bound(workspace=tmp_path))
    with pytest.raises(DataError, match=r"train\.json: not there; run the train step first"):
        inputs(values, run)


def make_task(folder: Path, **changes: Any) -> Path:
    """A multiple-choice task on questions of its own, as a YAML file (JSON is YAML too)."""
    questions = [
        {"question": f"Which number is {word}?", "choices": ["1", "2", "3"], "answer": answer}
        for answer, word in enumerate(["one", "two", "three"])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "numbers.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = {
        "task": "which_number",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1.5},
    }
    path = folder / f"{changes.get('task', task['task'])}.yaml"
    path.write_text(json.dumps(task | changes))
    return path


GENERATING: dict[str, Any] = {
    "task": "write_number",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "doc_to_choice": None,
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
    "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {
            "name": "digits",
            "filter": [
                {"function": "regex", "regex_pattern": "([0-9])"},
                {"function": "take_first"},
            ],
        },
    ],
}


def which_number(model: Path, template: bool = True) -> float:
    """The accuracy on the questions of `make_task`, computed one choice at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    right = 0
    for answer, word in enumerate(["one", "two", "three"]):
        prompt = f"Which number is {word}?"
        if template:
            prompt = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        likely = []
        for choice in ("1", "2", "3"):
            before = tokenizer(prompt).input_ids
            ids = tokenizer(prompt + ("" if template else " ") + choice).input_ids
            with torch.no_grad():
                words = loaded(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            likely.append(sum(float(words[n - 1, ids[n]]) for n in range(len(before), len(ids))))
        right += likely.index(max(likely)) == answer
    return right / 3


def test_tasks_are_named_by_their_metrics_and_filters(ground: Ground, tmp_path: Path) -> None:
    tasks = [make_task(tmp_path), make_task(tmp_path, **GENERATING)]
    result = ground.evaluate(tasks=[str(path) for path in tasks], baseline="all", heldout_limit=0)
    found = ground.results["tasks"]
    assert found["which_number"]["tuned"]["acc"] == which_number(ground.workspace.model)
    assert found["which_number"]["base"]["acc"] == which_number(ground.base)
    assert found["which_number"]["tuned"].keys() == {
        "acc",
        "acc_stderr",
        "acc_norm",
        "acc_norm_stderr",
    }
    assert "exact_match,digits" in found["write_number"]["tuned"]
    assert result.metrics["which_number.acc"] == found["which_number"]["tuned"]["acc"]
    assert result.metrics["which_number.acc_base"] == found["which_number"]["base"]["acc"]
    assert "write_number.exact_match,digits_base" in result.metrics
    assert result.details["tasks"]["which_number"]["version"] == 1.5
    assert result.details["tasks"]["which_number"]["higher_is_better"]["acc"]
    kept = {path.name for path in ground.workspace.task_samples.iterdir()}
    assert kept == {f"{t}{m}.jsonl" for t in found for m in ("", ".base")}


def test_the_base_model_is_scored_on_as_much_as_baseline_says(
    ground: Ground, tmp_path: Path
) -> None:
    task = str(make_task(tmp_path))
    ground.evaluate(tasks=[task], heldout_limit=0)
    assert ground.results["heldout"].keys() == {"tuned", "base"}
    assert ground.results["tasks"]["which_number"].keys() == {"tuned"}
    result = ground.evaluate(tasks=[task], heldout_limit=0, baseline="none")
    assert ground.results["heldout"].keys() == {"tuned"}
    assert result.results["heldout-loss-base"] == ""


class Shapes:
    """Shapes of the token batches that models are given, while the context is open."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __enter__(self) -> "Shapes":
        from torch.nn.modules.module import register_module_forward_pre_hook

        self._hook = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, module: Any, arguments: tuple[Any, ...]) -> None:
        if type(module).__name__ == "Embedding":
            rows, tokens = arguments[0].shape
            self.seen.append((rows, tokens))


def test_batch_is_the_number_of_rows_that_a_model_is_given(ground: Ground, tmp_path: Path) -> None:
    task = str(make_task(tmp_path))
    for batch, rows in {"2": (2, 2), "auto": (5, 3)}.items():
        ground.hold_out([[("user", str(n)), ("assistant", "two three")] for n in range(5)])
        with Shapes() as held_out:
            ground.evaluate(batch=batch, baseline="none")
        ground.hold_out([])
        with Shapes() as asked:
            ground.evaluate(tasks=[task], batch=batch, baseline="none")
        assert (max(held_out.seen)[0], max(asked.seen)[0]) == rows


def test_limit_gen_kwargs_and_model_args_reach_lm_eval(ground: Ground, tmp_path: Path) -> None:
    choosing, writing = str(make_task(tmp_path)), str(make_task(tmp_path, **GENERATING))
    result = ground.evaluate(
        tasks=[choosing, writing],
        limit=2,
        gen_kwargs={"max_gen_toks": 3},
        model_args={"apply_chat_template": False, "max_length": 8},
        heldout_limit=0,
        baseline="none",
    )
    assert result.details["tasks"]["which_number"]["samples"] == 2
    lines = (ground.workspace.task_samples / "write_number.jsonl").read_text().splitlines()
    prompt, arguments = json.loads(lines[0])["arguments"][0]
    assert prompt == "Which number is one?"
    assert arguments == {"until": ["\n\n"], "max_gen_toks": 3}
    with Shapes() as shapes:
        ground.evaluate(
            tasks=[choosing], model_args={"max_length": 8}, heldout_limit=0, baseline="none"
        )
    assert shapes.seen[-1][1] <= 8


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"gen_kwargs": {"temprature": 1}}, r"--gen-kwargs .*temprature"),
        ({"gen_kwargs": {"max_gen_toks": 600}}, r"--gen-kwargs .*512"),
        ({"model_args": {"dtyp": "auto"}}, r"--model-args .*dtyp"),
        ({"model_args": {"pretrained": "other"}}, r"name the model by phase_03_eval_opt_model"),
    ],
)
def test_arguments_that_lm_eval_refuses_are_named(
    ground: Ground, tmp_path: Path, params: dict[str, Any], message: str
) -> None:
    task = str(make_task(tmp_path, **GENERATING))
    with pytest.raises(UsageError, match=message):
        ground.evaluate(tasks=[task], heldout_limit=0, baseline="none", **params)


def test_without_log_samples_no_prompt_is_kept(ground: Ground, tmp_path: Path) -> None:
    task = str(make_task(tmp_path))
    ground.evaluate(tasks=[task], baseline="none")
    ground.evaluate(tasks=[task], baseline="none", log_samples=False)
    folder = ground.workspace.results.parent
    assert [path.name for path in folder.iterdir()] == ["results.json"]
    assert "Which number" not in ground.workspace.results.read_text()
    assert ground.results["heldout"]["tuned"]["exact_match"] is not None


def test_what_lies_beside_a_yaml_file_is_found(ground: Ground, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "tasks").parent
    (folder / "helper.py").write_text("def two(docs):\n    return docs.select([0, 1])\n")
    (folder / "two.yaml").write_text(
        "include: which_number.yaml\ntask: two_numbers\nprocess_docs: !function helper.two\n"
    )
    (folder / "all.yaml").write_text(
        "group: numbers\ntask: [which_number, two_numbers]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    tasks = [str(folder / "all.yaml")]
    result = ground.evaluate(tasks=tasks, heldout_limit=0, baseline="none")
    found = result.details["tasks"]
    assert found["which_number"]["samples"] == 3
    assert found["two_numbers"]["samples"] == 2
    one, two = (result.metrics[f"{task}.acc"] for task in ("which_number", "two_numbers"))
    assert result.metrics["numbers.acc"] == pytest.approx((3 * one + 2 * two) / 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"mine\.yaml: there is no such file"),
        ("task: [", r"mine\.yaml: not an lm-eval task: .*line 2"),
        ("- task", r"mine\.yaml: not an lm-eval task"),
        ("name: mine", r"neither `task` nor `group`"),
        ("include: other.yaml\ntask: mine", r"other\.yaml: there is no such file"),
    ],
)
def test_a_yaml_file_that_is_no_task_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_text(content)
    run = Run(Bound(workspace=tmp_path))
    with pytest.raises(DataError, match=message):
        check(EvaluateParams(tasks=[str(path)]), run)


@pytest.mark.parametrize(
    "named",
    ["none.jsonl", {"test": "none.jsonl"}, {"test": ["none-*.jsonl"]}],
)
def test_the_check_looks_for_the_data_of_a_task_that_lies_here(tmp_path: Path, named: Any) -> None:
    folder = make_task(tmp_path).parent
    run = Run(Bound(workspace=tmp_path / "run"))
    there = {"dataset_kwargs": {"data_dir": str(folder), "data_files": {"test": "num*.jsonl"}}}
    check(EvaluateParams(tasks=[str(make_task(tmp_path, **there))]), run)
    lost = {"task": "lost", "dataset_kwargs": {"data_dir": str(folder), "data_files": named}}
    path = make_task(folder, **lost)
    with pytest.raises(DataError, match=r"none.*\.jsonl: there is no such file; .*lost\.yaml"):
        check(EvaluateParams(tasks=[str(path)]), run)
    (folder / "all.yaml").write_text("group: numbers\ntask: [which_number, lost]\n")
    with pytest.raises(DataError, match=r"lost\.yaml names it"):
        check(EvaluateParams(tasks=[str(folder / "all.yaml")]), run)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset_kwargs": {"data_files": "/nowhere.jsonl"}}, DataError, "/nowhere.jsonl"),
        ({"test_split": "dev"}, DataError, "KeyError: 'dev'"),
        ({"doc_to_text": "{{question"}, DataError, "TemplateSyntaxError"),
        ({"unsafe_code": True}, UsageError, "runs code that the model writes"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_before_any_model_is_loaded(
    ground: Ground, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    (ground.workspace.model / "model.safetensors").unlink()
    with pytest.raises(error, match=message):
        ground.evaluate(tasks=[str(make_task(tmp_path, **changes))])


def command(workspace: Workspace, *arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "steps.evaluate", "--workspace", str(workspace.root), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_the_command_leaves_record_results_and_report(ground: Ground, tmp_path: Path) -> None:
    task, outputs = make_task(tmp_path), tmp_path / "outputs"
    arguments = ["--tasks", str(task), "--outputs", str(outputs), "--baseline", "all"]
    done = command(ground.workspace, *arguments, "--verbosity", "DEBUG")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "DEBUG evaluate: Task: which_number; number of requests on this rank: 9" in done.stderr
    assert "lm-eval, tuned model: 9 of 9 requests" in done.stderr
    assert all(re.match(r"\S+Z [A-Z]+ evaluate: ", line) for line in done.stderr.splitlines())
    evaluated = read(ground.workspace, "evaluate")
    assert evaluated is not None
    assert evaluated.metrics["which_number.acc"] == which_number(ground.workspace.model)
    assert evaluated.inputs.keys() >= {"model", "base_model", "eval", f"task {task}"}
    assert evaluated.outputs.keys() == {"results", "samples", "lm_eval"}
    assert (outputs / "heldout-loss").read_text() == evaluated.results["heldout-loss"]
    assert "which_number" in ground.workspace.report.read_text()
    again = command(ground.workspace, *arguments)
    assert (again.returncode, "already done" in again.stderr) == (0, True)


def test_an_unknown_task_is_refused_with_the_nearest_names(ground: Ground) -> None:
    done = command(ground.workspace, "--check", "--tasks", "arc_eazy,hellaswag")
    assert done.returncode == 64
    assert "knows no task 'arc_eazy'; did you mean arc_easy" in done.stderr
    assert "hellaswag" not in done.stderr
    assert not ground.workspace.log("evaluate").exists()


def hub_task(folder: Path) -> Path:
    """A task on a data set of the hub that lies in `folder/hub`."""
    task = make_task(folder, dataset_path="org/numbers", dataset_kwargs=None)
    data = folder / "hub" / "datasets" / "org" / "numbers"
    data.mkdir(parents=True)
    (data / "test.jsonl").write_bytes((folder / "numbers.jsonl").read_bytes())
    return task


def test_the_check_asks_for_the_data_sets_of_tasks_and_fetches_none(tmp_path: Path) -> None:
    task, workspace = hub_task(tmp_path), Workspace(tmp_path / "run")
    (tmp_path / "group.yaml").write_text("group: all\ntask: [which_number]\n")
    for named in (task, tmp_path / "group.yaml"):
        with Hub(tmp_path / "hub") as hub:
            done = command(workspace, "--check", "--tasks", str(named), **hub.environment)
        assert done.returncode == 0, done.stderr
        assert hub.requests
        assert not any("/resolve/" in request for request in hub.requests)
        assert not workspace.root.exists()


def test_the_check_tells_all_data_sets_that_cannot_be_had(tmp_path: Path) -> None:
    task, workspace = hub_task(tmp_path), Workspace(tmp_path / "run")
    named = ("--check", "--tasks", f"arc_easy,{task}")
    with Hub(tmp_path / "hub", token="hf_right", gated=frozenset({"org/numbers"})) as hub:
        refused = command(workspace, *named, **hub.environment)
    assert refused.returncode == 77, refused.stderr
    for told in (
        "arc_easy: its data set allenai/ai2_arc: there is no such data set on the hub, or it is",
        f"{task}: its data set org/numbers: gated: accept its licence at {hub.url}/datasets/org/",
        "token in the secret hf-token",
    ):
        assert told in refused.stderr
    assert not workspace.root.exists()


def test_a_data_set_in_the_cache_needs_no_hub(ground: Ground, tmp_path: Path) -> None:
    named = ("--tasks", str(hub_task(tmp_path)), "--cache", str(tmp_path / "cache"))
    refused = command(ground.workspace, *named, "--check")
    assert refused.returncode == 78, refused.stderr
    assert "org/numbers is not in the cache, and HF_HUB_OFFLINE" in refused.stderr
    with Hub(tmp_path / "hub") as hub:
        done = command(ground.workspace, *named, **hub.environment)
    assert done.returncode == 0, done.stderr
    checked = command(ground.workspace, *named, "--check")
    assert checked.returncode == 0, checked.stderr


def test_a_gated_data_set_names_the_secret(ground: Ground, tmp_path: Path) -> None:
    data = tmp_path / "hub" / "datasets" / "org" / "numbers"
    data.mkdir(parents=True)
    (data / "test.jsonl").write_text("{}\n")
    task = make_task(tmp_path, dataset_path="org/numbers", dataset_kwargs=None)
    with Hub(tmp_path / "hub", token="hf_right", gated=frozenset({"org/numbers"})) as hub:
        done = command(
            ground.workspace, "--tasks", str(task), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0"
        )
    assert done.returncode == 77, done.stderr
    assert "the secret 'hf-token'" in done.stderr


def test_a_token_given_as_a_parameter_reaches_model_and_data_sets(
    ground: Ground, tmp_path: Path
) -> None:
    numbers = make_task(tmp_path).with_name("numbers.jsonl")
    data = tmp_path / "hub" / "datasets" / "org" / "numbers"
    data.mkdir(parents=True)
    (data / "test.jsonl").write_bytes(numbers.read_bytes())
    make_model(tmp_path / "hub" / "models" / "org" / "tuned", "llama")
    task = make_task(tmp_path, dataset_path="org/numbers", dataset_kwargs=None)
    gated = frozenset({"org/numbers", "org/tuned"})
    with Hub(tmp_path / "hub", token="hf_right", gated=gated) as hub:
        done = command(
            ground.workspace,
            *("--tasks", str(task), "--model", "org/tuned", "--heldout-limit", "0"),
            **(hub.environment | {"HF_HOME": str(tmp_path), "SFT_HF_TOKEN": "hf_right"}),
        )
    assert done.returncode == 0, done.stderr
    assert "hf_right" not in done.stderr


def test_a_token_of_the_tokenizer_that_the_model_does_not_know_is_told(ground: Ground) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["Paris"])
    tokenizer.save_pretrained(ground.workspace.model)
    ground.hold_out(CHATS)
    with pytest.raises(DataError, match="gives the token 400, but its embedding has 400 tokens"):
        ground.evaluate()


def test_a_data_set_that_is_not_in_the_cache_is_told_when_offline(
    ground: Ground, tmp_path: Path
) -> None:
    task = make_task(tmp_path, dataset_path="org/numbers", dataset_kwargs=None)
    done = command(ground.workspace, "--tasks", str(task), HF_HUB_OFFLINE="1")
    assert done.returncode == 78, done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr
