"""Where things lie in a run's folder. Steps find each other's files here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path

from steps import files

STEPS = ("dataset", "train", "evaluate", "register")


@dataclass(frozen=True)
class Workspace:
    """The layout of one run's folder."""

    root: Path

    @property
    def train_rows(self) -> Path:
        """Chats to train on, one JSON object a line with `messages`."""
        return self.root / "dataset" / "train.jsonl"

    @property
    def eval_rows(self) -> Path:
        """Chats held out from training; always there, empty at split 1.0."""
        return self.root / "dataset" / "eval.jsonl"

    @property
    def rejected_rows(self) -> Path:
        """Rows that were skipped, each with its file, line and reason."""
        return self.root / "dataset" / "rejected.jsonl"

    @property
    def train_tokens(self) -> Path:
        """`input_ids`, `labels` and `len` of the rows that are trained on."""
        return self.root / "tokens" / "train.jsonl"

    @property
    def eval_tokens(self) -> Path:
        """The same for every held-out row, in the order of `eval_rows`."""
        return self.root / "tokens" / "eval.jsonl"

    @property
    def token_counts(self) -> Path:
        """What became of the rows of both, written when they are whole."""
        return self.root / "tokens" / "counts.json"

    @property
    def checkpoints(self) -> Path:
        """What training needs to go on after a stop."""
        return self.root / "checkpoints"

    @property
    def curve(self) -> Path:
        """The loss curve, one JSON object an optimizer step."""
        return self.root / "training" / "curve.jsonl"

    @property
    def started(self) -> Path:
        """Which TrainJob was started for this folder; there until it was seen to end."""
        return self.root / "training" / "trainjob.json"

    @property
    def train_lock(self) -> Path:
        """Held by the train step that is at work here."""
        return self.root / "training" / "step.lock"

    @property
    def base_model(self) -> Path:
        """Which base model this run resolved to, pinned when training first looked."""
        return self.root / "training" / "base.json"

    @property
    def model(self) -> Path:
        """The tuned model, in Hugging Face format."""
        return self.root / "model"

    @property
    def results(self) -> Path:
        """Scores of the tuned and the base model."""
        return self.root / "evaluation" / "results.json"

    @property
    def samples(self) -> Path:
        """Held-out prompts with the expected, the base model's and the tuned model's answer."""
        return self.root / "evaluation" / "samples.jsonl"

    @property
    def task_samples(self) -> Path:
        """lm-eval's samples of each task."""
        return self.root / "evaluation" / "lm_eval"

    @property
    def registration(self) -> Path:
        """What was, or would be, registered."""
        return self.root / "registration.json"

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.root / "report.html"

    def log(self, step: str) -> Path:
        """The step's log file; attempts follow one another in it."""
        return self.root / "logs" / f"{step}.log"

    def record(self, step: str) -> Path:
        """The step's result record: there if and only if the step has ended well."""
        return self.root / f"{step}.json"

    def locate(self, path: str) -> Path:
        """Where a path of a record lies: relative ones are relative to this folder."""
        return self.root / path

    def discard(self, step: str) -> None:
        """Forget the results of `step` and of every step after it; it starts afresh."""
        after = STEPS[STEPS.index(step) :] if step in STEPS else (step,)
        for name in after:
            files.remove(self.record(name))
