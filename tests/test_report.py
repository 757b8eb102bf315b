"""The report: what it shows of a run, whole or not, and that nothing in it acts or loads."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steps import report
from steps.quantities import duration, number, percent, short_duration, size
from steps.record import Asset, Record
from steps.report.chart import XY, loss_chart, nice_ticks, smoothed, thinned
from steps.report.comparison import comparisons
from steps.workspace import Workspace

BEGUN = datetime(2026, 11, 23, 9, 30, tzinfo=UTC)
SHA = "9f2c4e" + "0123456789abcdef" * 3 + "77aa01b2c3"


def make_record(step: str, *, minute: float = 0, seconds: float = 1, **fields: Any) -> Record:
    started = BEGUN + timedelta(minutes=minute)
    values: dict[str, Any] = {
        "step": step,
        "status": "done",
        "fingerprint": "f" * 64,
        "started": started,
        "finished": started + timedelta(seconds=seconds),
        "seconds": seconds,
        "parameters": {},
        "inputs": {},
        "outputs": {},
        "metrics": {},
        "versions": {"sft-pipeline": "0.1.0"},
    }
    return Record.model_validate(values | fields)


def make_run(steps: int = 1500) -> dict[str, Any]:
    """All that `render` takes, of a run as they are: a dictionary learned word by word."""
    data = make_record(
        "dataset",
        seconds=0.412,
        parameters={"data_uri": "hf://acme/dictionary@main", "data_split": 0.9, "hf_token": ""},
        inputs={"data": Asset(uri="hf://acme/dictionary", revision="4b1f0a77c2")},
        outputs={
            "train": Asset(path="dataset/train.jsonl", bytes=1_482_113, sha256=SHA),
            "eval": Asset(path="dataset/eval.jsonl", bytes=164_020, sha256=SHA),
        },
        metrics={
            "rows_read": 12_480,
            "rows_train": 11_070,
            "rows_eval": 1230,
            "rows_rejected": 24,
            "rows_duplicate": 156,
        },
        details={
            "statistics": {
                "characters": {"minimum": 18, "median": 131, "p95": 1204, "maximum": 18_223},
                "turns": {"minimum": 2, "median": 2, "p95": 8, "maximum": 24},
                "roles": {"system": 11_070, "user": 25_113, "assistant": 25_113, "tool": 310},
            }
        },
    )
    train = make_record(
        "train",
        minute=0.1,
        seconds=3_912.4,
        parameters={
            "model": "Qwen/Qwen2.5-1.5B-Instruct",
            "train_batch": 128,
            "epochs": 3,
            "learning_rate": 5e-06,
            "env_vars": "**********",
            "labels": "",
            "save_epoch": True,
        },
        inputs={
            "base_model": Asset(
                uri="hf://Qwen/Qwen2.5-1.5B-Instruct",
                path="/cache/hub/models--Qwen--Qwen2.5-1.5B-Instruct",
                revision="989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
            )
        },
        outputs={"model": Asset(path="model", bytes=3_094_000_000, sha256=SHA)},
        metrics={
            "rows_trained": 11_051,
            "tokens_trained": 1_204_331,
            "steps": steps,
            "loss_first": 3.2141,
            "loss_last": 0.41234,
            "loss_min": 0.3981,
            "tokens_per_second": 18_422.7,
        },
        versions={"sft-pipeline": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        details={"seconds": {"tokenising": 12.4, "training": 3871.0, "publishing": 29.0}},
    )
    evaluate = make_record(
        "evaluate",
        minute=66,
        seconds=241.7,
        parameters={"tasks": ["arc_easy"], "limit": -1},
        outputs={"results": Asset(path="evaluation/results.json", bytes=1204, sha256=SHA)},
        metrics={"heldout_loss": 0.43123, "heldout_loss_base": 3.3504},
        versions={"lm_eval": "0.4.13"},
    )
    register = make_record(
        "register",
        minute=71,
        seconds=0.9,
        parameters={"address": "https://registry.example", "version": "1.0.0"},
        versions={"model-registry": "0.3.18"},
        results={"status": "registered", "version": "1.0.0", "uri": "pvc://sft-runs/runs/demo"},
    )
    curve = [
        {
            "step": step,
            "epoch": 3 * step / steps,
            "loss": 0.4 + 2.8 * math.exp(-7 * step / steps) * (1 + 0.12 * math.sin(step * 7.3)),
            "lr": 5e-6 * (1 + math.cos(math.pi * step / steps)) / 2,
            "tokens_per_second": 18_000 + step % 700,
        }
        for step in range(1, steps + 1)
    ]
    words = [("water", "Wasser"), ("bread", "Brot"), ("house", "Haus"), ("tree", "Baum")]
    samples: list[dict[str, Any]] = [
        {
            "row": row,
            "turn": 1,
            "prompt": [{"role": "user", "content": f"Translate into German: {english}"}],
            "expected": german,
            "base": "The word is often used in a sentence such as the one that you have here.",
            "tuned": german if row != 2 else "Hut",
        }
        for row, (english, german) in enumerate(words)
    ]
    long = "It depends on the season. " * 40
    samples.append(
        {
            "prompt": [
                {"role": "system", "content": "You are a gardener.\nAnswer briefly."},
                {"role": "user", "content": "When do I plant a tree?"},
                {"role": "assistant", "content": "In autumn."},
                {"role": "user", "content": "Why not in summer?"},
            ],
            "expected": "Because roots need water.",
            "base": long,
            "tuned": "Because roots need water.\n",
        }
    )
    return {
        "name": "demo-2026-11-23",
        "records": {done.step: done for done in (data, train, evaluate, register)},
        "curve": curve,
        "samples": samples,
        "results": {
            "heldout": {
                "tuned": {
                    "loss": 0.43123,
                    "perplexity": 1.5391,
                    "exact_match": 0.925,
                    "chrf": 95.12,
                    "rows": 1230,
                    "tokens": 133_902,
                },
                "base": {"loss": 3.3504, "perplexity": 28.51, "exact_match": 0.0, "chrf": 11.4},
            },
            "tasks": {
                "arc_easy": {
                    "tuned": {"acc": 0.7412, "acc_stderr": 0.009, "acc_norm": 0.6911},
                    "base": {"acc": 0.7601, "acc_stderr": 0.0088, "acc_norm": 0.6911},
                },
                "wikitext": {"tuned": {"word_perplexity": 12.41}, "base": {"word_perplexity": 13}},
            },
        },
        "registration": {
            "status": "registered",
            "registry": "https://registry.example",
            "name": "dictionary",
            "version": "1.0.0",
            "uri": "pvc://sft-runs/runs/demo-2026-11-23/model",
            "ids": {"model": "1", "version": "4", "artifact": "7"},
        },
    }


class Page(HTMLParser):
    """What a browser would make of the page: its elements, its text, and all that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] != "style":
            self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value or "" for name, value in self.attributes if name == attribute]


def save(workspace: Workspace, run: dict[str, Any]) -> None:
    for done in run["records"].values():
        done.write(workspace)
    for path, lines in ((workspace.curve, run["curve"]), (workspace.samples, run["samples"])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    workspace.results.write_text(json.dumps(run["results"]))
    workspace.registration.write_text(json.dumps(run["registration"]))


def test_verdict_says_how_the_tuned_model_compares() -> None:
    page = Page(report.render(**make_run()))
    assert "demo-2026-11-23 Qwen/Qwen2.5-1.5B-Instruct fine-tuned on hf://acme/dict" in page.text
    assert "Held-out loss 3.350 → 0.4312 7.8 times lower better than the base model" in page.text
    assert "Exact match 0.0% → 92.5% +92.5 points better than the base model" in page.text


def test_page_shows_every_part_of_a_run() -> None:
    page = Page(report.render(**make_run()))
    for fact in (
        "train ✓ done in 1 h 5 min loss 3.214 → 0.4123 2026-11-23 09:30:06 UTC",
        "Tokens in the loss 1,204,331",
        "Time 1 h 9 min 4 of 4 steps",
        "Held-out rows 1,230 rows, 133,902 tokens",
        "12,480 rows read 11,070 to train on 1,230 held out 24 rejected 156 duplicates",
        "Characters 18 131 1,204 18,223",
        "25,113 assistant",
        "tokenising 12 s, training 1 h 4 min, publishing 29 s",
        "learning_rate 5e-06 env_vars **********",
        "registered name dictionary version 1.0.0 address pvc://sft-runs/runs/demo-2026-11-23/model",
        "base_model hf://Qwen/Qwen2.5-1.5B-Instruct",
        "989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
        "sha256 9f2c4e0123456789… 3.09 GB",
        "torch 2.13.0",
    ):
        assert fact in page.text


def test_parameters_without_a_value_are_left_out() -> None:
    page = Page(report.render(**make_run()))
    assert "hf_token" not in page.text
    assert "labels" not in page.text


def test_untrusted_text_is_shown_and_never_acts() -> None:
    run = make_run()
    attack = "</script></style><img src=x onerror=alert(1)><a href='http://evil.example'>"
    run["samples"] = [
        {"prompt": attack, "expected": attack, "base": attack, "tuned": attack * 20},
        {
            "prompt": [{"role": attack, "content": attack}] * 5,
            "expected": "",
            "tuned": "{{ 7 * 7 }}",
        },
    ]
    run["name"] = attack
    run["results"]["tasks"][attack] = {"tuned": {attack: 1.0}}
    run["registration"]["name"] = attack
    html = report.render(**run)
    page = Page(html)
    assert not {"img", "a", "script", "iframe", "link", "object", "form"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert attack in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_page_loads_nothing() -> None:
    html = report.render(**make_run())
    page = Page(html)
    for attribute in ("src", "srcset", "href", "xlink:href", "action", "data", "background"):
        assert page.values(attribute) == []
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert not re.search(r"url\(|@import|image-set", style)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.values("content")


def test_run_without_a_record_says_what_is_still_to_come() -> None:
    page = Page(report.render(name="fresh", records={}))
    assert "Nothing to compare yet" in page.text
    assert page.text.count("not run yet") == 4
    for step in ("dataset", "train", "evaluate", "register"):
        assert f"it comes with the {step} step" in page.text


def test_parts_are_shown_as_they_come() -> None:
    run = make_run()
    page = Page(report.render(name="half", records={"dataset": run["records"]["dataset"]}))
    assert "Data set hf://acme/dictionary@main" in page.text
    assert "Rows to train on 11,070" in page.text
    assert "Time 0.4 s 1 of 4 steps" in page.text
    assert page.text.count("not run yet") == 3


def test_records_without_their_optional_facts_are_shown() -> None:
    records = {step: make_record(step) for step in ("dataset", "train", "evaluate", "register")}
    page = Page(report.render(name="bare", records=records, results={}, registration={"ids": None}))
    assert "No scores: nothing was held out, and no task was asked for." in page.text
    assert "No answers were generated." in page.text


def test_skipped_step_is_shown_with_its_reason() -> None:
    run = make_run()
    reason = "no registry address is given"
    run["records"]["register"] = make_record("register", status="skipped", reason=reason)
    run["registration"] = {"status": "skipped", "name": "dictionary", "version": "1.0.0"}
    run["records"]["register"].results["version"] = "1.0.0"
    page = Page(report.render(**run))
    assert "Version" not in page.text
    assert f"register skipped {reason}" in page.text
    assert f"Registration skipped {reason} name dictionary" in page.text


def test_further_step_has_its_place() -> None:
    run = make_run()
    run["records"]["publish"] = make_record("publish", minute=80, parameters={"target": "s3://b/k"})
    page = Page(report.render(**run))
    assert "publish ✓ done in 1.0 s" in page.text
    assert "5 of 5 steps" in page.text
    assert "target s3://b/k" in page.text


def test_tasks_make_the_verdict_where_nothing_is_held_out() -> None:
    run = make_run()
    run["results"]["heldout"] = None
    page = Page(report.render(**run))
    assert "acc arc_easy 76.0% → 74.1% −1.9 points worse than the base model" in page.text
    assert "Loss per token" not in page.text


def test_the_scores_of_few_held_out_rows_are_said_to_be_rough() -> None:
    run, caution = make_run(), "Only 99 rows are held out: the scores of so few are rough."
    for rows, is_told in ((99, True), (100, False)):
        run["results"]["heldout"]["tuned"]["rows"] = rows
        assert (caution in Page(report.render(**run)).text) is is_told


def test_a_path_that_names_an_asset_stands_once_in_its_provenance() -> None:
    run = make_run()
    run["records"]["train"].inputs["base_model"] = Asset(uri="/models/base", path="/models/base")
    run["records"]["evaluate"].inputs["task /tasks/a.yaml"] = Asset(path="/tasks/a.yaml")
    text = Page(report.render(**run)).text
    assert text.count("/models/base") == 1
    assert "evaluate in task /tasks/a.yaml" in text


def test_scores_without_a_base_model_stand_alone() -> None:
    run = make_run()
    run["results"] = {"heldout": {"tuned": {"loss": 0.5, "exact_match": None}}, "tasks": {}}
    run["samples"] = [{"prompt": "Hi", "expected": "Hello", "base": None, "tuned": "Hello"}]
    page = Page(report.render(**run))
    assert "Held-out loss 0.5000" in page.text
    assert "than the base model" not in page.text
    assert "Base model" not in page.text


def test_matching_answers_are_marked_but_for_white_space() -> None:
    html = report.render(**make_run())
    assert html.count("✓ as expected") == 4
    assert html.count("as expected") == 4


def test_samples_are_limited_and_counted() -> None:
    run = make_run()
    run["samples"] = [{"prompt": f"Q{n}", "expected": "A", "tuned": "A"} for n in range(57)]
    page = Page(report.render(**run))
    assert "Samples 20 of 57" in page.text
    assert "Q19" in page.text
    assert "Q20" not in page.text


def test_long_text_is_folded_and_whole() -> None:
    run = make_run()
    text = "word " * 400 + "end"
    run["samples"] = [{"prompt": "Q", "expected": "A", "tuned": text}]
    html = report.render(**run)
    assert '<details class="fold">' in html
    assert text in html


def test_text_of_many_lines_is_folded() -> None:
    run = make_run()
    run["samples"] = [{"prompt": "Q", "expected": "A", "tuned": "\n" * 40 + "end"}]
    html = report.render(**run)
    assert '<span class="start" dir="auto">end…</span>' in html


def test_earlier_turns_of_a_long_prompt_are_folded() -> None:
    page = Page(report.render(**make_run()))
    assert "3 earlier turns system You are a gardener. Answer briefly." in page.text
    assert "Why not in summer?" in page.text


def test_turn_without_text_shows_its_tool_calls() -> None:
    run = make_run()
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    run["samples"] = [{"prompt": [call], "expected": "4", "tuned": "4"}]
    assert '{"tool_calls": [{"function": {"name": "add"}}]}' in Page(report.render(**run)).text


def test_write_shows_what_is_in_the_workspace(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "run-7")
    save(workspace, make_run())
    report.write(workspace)
    page = Page(workspace.report.read_text(encoding="utf-8"))
    assert page.text.count("run-7") == 2
    assert "7.8 times lower" in page.text
    assert "Loss over 1500 optimizer steps" in page.values("aria-label")
    assert "Translate into German: bread" in page.text
    assert "pvc://sft-runs/runs/demo-2026-11-23/model" in page.text


def test_write_leaves_out_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    save(workspace, make_run())
    workspace.discard("train")
    report.write(workspace)
    page = Page(workspace.report.read_text(encoding="utf-8"))
    assert "svg" not in page.elements
    assert "7.8 times lower" not in page.text
    assert "Translate into German" not in page.text
    assert "pvc://" not in page.text


def test_write_survives_text_that_is_no_unicode(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = make_run()
    run["samples"] = [{"prompt": "half \ud83d", "expected": "A", "tuned": "A"}]
    save(workspace, run)
    report.write(workspace)
    assert "half ?" in workspace.report.read_text(encoding="utf-8")


def test_lower_is_better_for_losses_and_higher_for_the_rest() -> None:
    found = {
        (row.group, row.metric): row.change.verdict
        for row in comparisons(make_run()["results"])
        if row.change
    }
    assert found == {
        ("Held-out rows", "Loss per token"): "better",
        ("Held-out rows", "Perplexity"): "better",
        ("Held-out rows", "Exact match"): "better",
        ("Held-out rows", "chrF"): "better",
        ("arc_easy", "acc"): "worse",
        ("arc_easy", "acc_norm"): "same",
        ("wikitext", "word_perplexity"): "better",
    }


def test_higher_loss_is_worse_by_its_factor() -> None:
    heldout = {"tuned": {"loss": 2.0}, "base": {"loss": 1.6}}
    (row,) = comparisons({"heldout": heldout})
    assert row.change
    assert (row.change.amount, row.change.factor) == ("+0.4", "1.2 times higher")
    assert row.change.verdict == "worse"


def test_standard_error_stands_beside_its_score() -> None:
    scores = {"exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.014}
    (row,) = comparisons({"tasks": {"gsm8k": {"tuned": scores}}})
    assert row.metric == "exact_match,strict-match"
    assert (row.tuned.value, row.tuned.error) == ("50.0%", "± 1.4%")
    assert row.base is None


def test_long_curve_is_thinned_and_keeps_its_ends_and_peaks() -> None:
    points = [XY(step, 1.0) for step in range(50_000)]
    points[31_234] = XY(31_234, 9.0)
    kept = thinned(points)
    assert len(kept) <= 400
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert points[31_234] in kept
    assert kept == sorted(kept)


def test_drawn_curve_stays_small_however_long_the_training() -> None:
    run = make_run(steps=50_000)
    html = report.render(**run)
    assert html.count('<g class="spot">') <= 400
    assert len(html) < 200_000


def test_smooth_line_is_the_mean_around_each_point() -> None:
    line = smoothed([XY(x, y) for x, y in enumerate((3.0, 0.0, 3.0, 0.0, 3.0))], window=3)
    assert [round(point.y, 6) for point in line] == [3.0, 2.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.41, 3.2, [0, 1, 2, 3, 4]),
        (1.12, 1.38, [1.1, 1.2, 1.3, 1.4]),
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
        (2, 2, [1, 1.5, 2, 2.5, 3]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_steps_are_labelled_by_whole_numbers() -> None:
    chart = loss_chart([{"step": step, "loss": 3.0 - step} for step in (1, 2, 3)])
    assert chart
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]
    assert chart.smooth == ""


def test_curve_of_one_step_is_a_dot() -> None:
    chart = loss_chart([{"step": 1, "loss": 2.0}])
    assert chart
    assert chart.raw.startswith("M500.0 ")
    assert chart.raw.endswith("h0")


def test_held_out_losses_are_a_line_of_their_own() -> None:
    curve = [
        {"step": step, "loss": 1.0, "heldout": 2.0 if step % 5 == 0 else None}
        for step in range(1, 11)
    ]
    chart = loss_chart(curve)
    assert chart
    assert chart.heldout.count("L") == 1
    assert chart.heldout_marks.count("M") == 2
    assert "held-out loss 2" in chart.spots[4].title


def test_hover_tells_the_facts_of_a_step() -> None:
    chart = loss_chart(make_run()["curve"])
    assert chart
    assert chart.spots[0].title == (
        "step 1\nloss 3.471\nepoch 0.00\nlearning rate 5e-06\n18,001 tokens/s"
    )
    assert sum(spot.width for spot in chart.spots) == pytest.approx(1000)


def test_loss_that_is_no_number_is_not_drawn() -> None:
    assert loss_chart([{"step": 1, "loss": math.nan}]) is None


def test_numbers_are_written_for_readers() -> None:
    assert [number(value) for value in (None, 0, 12_345, 12_345.6, 0.431234, 2.5, 0.00001234)] == [
        "–", "0", "12,345", "12,346", "0.4312", "2.500", "1.23e-05",
    ]  # fmt: skip
    assert [percent(share) for share in (None, 0, 0.925, 1)] == ["–", "0.0%", "92.5%", "100.0%"]
    assert [duration(seconds) for seconds in (0.4, 72, 11_100)] == [
        "0 s",
        "1 min 12 s",
        "3 h 5 min",
    ]
    assert [short_duration(seconds) for seconds in (0.412, 9.94, 9.96)] == [
        "0.4 s",
        "9.9 s",
        "10 s",
    ]
    assert [size(count) for count in (12, 1482, 3_094_000_000)] == [
        "12 bytes",
        "1.48 kB",
        "3.09 GB",
    ]
