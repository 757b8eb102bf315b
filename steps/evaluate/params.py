"""The contract of the evaluate step."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr

from steps.params import Cluster, Further, Man, Operational, Place, StepParams
from steps.secrets import HF_TOKEN, Secret
from steps.train.params import QUANTITY, Count


class EvaluateParams(StepParams):
    """Score the tuned model on lm-eval tasks and the held-out split, the base model beside it."""

    step: ClassVar[str] = "evaluate"
    secrets: ClassVar[tuple[Secret, ...]] = (HF_TOKEN,)

    tasks: Man[Place[list[str]]] = Field(default=["arc_easy"])
    """lm-eval tasks, by name or by the path of a YAML file."""
    batch: Operational[str] = Field(default="auto", pattern=r"^(auto|[1-9][0-9]*)$")
    """Evaluation batch: auto or a number."""
    gen_kwargs: dict[str, Any] = Field(default={})
    """Generation arguments of lm-eval's generating tasks."""
    limit: int = Field(default=-1, ge=-1)
    """Examples per task; -1 takes all."""
    log_samples: bool = True
    """Keep prompts and answers in evaluation/: samples.jsonl, and lm-eval's in lm_eval/."""
    model_args: dict[str, Any] = Field(default={})
    """Arguments of lm-eval's model, such as dtype; apply_chat_template=false goes without a template."""
    verbosity: Operational[Literal["DEBUG", "INFO", "WARNING", "ERROR"]] = "INFO"
    """Log level."""
    baseline: Further[Literal["heldout", "all", "none"]] = "heldout"
    """What the base model is scored on too: the held-out rows, all, or none."""
    model: Further[Place[str]] = ""
    """Evaluate this model (ID, path, pvc://) instead of the run's own."""
    hf_token: Further[SecretStr] = SecretStr("")
    """Hugging Face token for that model and for data sets of tasks; prefer the secret hf-token."""
    heldout_limit: Further[int] = Field(default=200, ge=-1)
    """Held-out rows to generate answers for; the loss is over all. -1 takes all."""
    gpu: Further[Cluster[Count]] = 1
    """GPUs of the evaluation pod."""
    cpu: Further[Cluster[str]] = Field(default="4", pattern=QUANTITY)
    """CPU cores of the evaluation pod: 4, 500m."""
    memory: Further[Cluster[str]] = Field(default="64Gi", pattern=QUANTITY)
    """Memory of the evaluation pod: 64Gi."""

    @property
    def scores_tasks(self) -> bool:
        """Whether any example of any task is asked."""
        return bool(self.tasks) and self.limit != 0
