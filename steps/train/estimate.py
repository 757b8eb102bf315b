"""What a training will need of memory and disk, estimated from the model's shape before it begins.

No GPU was at hand to hold these figures against: what was measured, was on a CPU. P is the number
of parameters, S the number of processes that a copy of them is sharded over.

On a GPU, as instructlab-training 0.16 trains (FSDP, bf16 over fp32 parameters, AdamW):

- states: 16 P / S bytes: parameters, gradients and AdamW's two moments, 4 each. accelerate makes
  fp32 of what FSDP trains, whatever the checkpoint's type (`Accelerator.prepare_model`).
- gathered, in bf16: of a sharded model what lies outside of its blocks, and two blocks (the one that
  computes and the one prefetched); under SHARD_GRAD_OP and in a single process, for which torch
  takes NO_SHARD, all of it.
- activations: 2 bytes a token, block and hidden unit (gradient checkpointing keeps the blocks'
  inputs), and for the one block that is computed anew 24 hidden + 8 intermediate bytes a token. What
  autograd keeps of a Qwen2 and a Llama block on the meta device is that: 18 and 8, and at most 6 for
  query, key and value of an attention that keeps no scores.
- logits: 20 bytes a token and entry of the vocabulary: the worker's loss beside that of
  transformers, both in fp32 with gradients. Measured by the peak of a process.
- AdamW's step takes 4 P / S for a moment, when activations and logits are gone.
- 2 GB for CUDA, NCCL and fragments, by experience of others.

On a CPU: 16 P. Of the host of a GPU: AdamW's moments, 8 P, which accelerate gathers in the first
process's memory to write a full state (`FullOptimStateDictConfig(offload_to_cpu, rank0_only)`); the
weights themselves are mapped from their files and need not be there at once (measured: loading
1.6 GB left 0.1 GB in memory).

On the disk a full state is 12 P (parameters and moments), and so is the one before it until the
new one is whole. A model is written in the base model's own type.
"""

from dataclasses import dataclass
from typing import Any

from steps.train.backend import Place
from steps.train.params import TrainParams

_AROUND = 2 * 10**9
"""Bytes of a GPU that CUDA, NCCL and fragments take."""
_A_PROCESS = 4 * 10**9
"""Bytes of host memory that a training process takes beside what is counted here, at a guess."""
_LOGITS = 20
_BATCHES_IN_FLIGHT = 16
"""The worker's loader has 8 processes, each two batches ahead."""
GPUS = (24, 40, 48, 80, 141)
"""Memory of common GPUs, in GB by their names."""
_USABLE = 0.92
"""Of the GiB that a GPU's name promises, what is left under error correction and the driver."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides how much it needs."""

    parameters: int
    weights: int
    """Bytes of the weights in the type that they are stored in."""
    blocks: int
    block: int
    """Parameters of the largest block."""
    outside: int
    """Parameters of no block: embeddings and head."""
    hidden: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """The shape of a model of transformers; its weights need no values."""
        names = set(getattr(model, "_no_split_modules", None) or ())
        blocks = [
            sum(weight.numel() for weight in module.parameters())
            for module in model.modules()
            if type(module).__name__ in names
        ]
        parameters = sum(weight.numel() for weight in model.parameters())
        config = model.config.get_text_config()
        hidden = config.hidden_size
        experts = getattr(config, "num_experts_per_tok", None) or 1
        expert = (getattr(config, "moe_intermediate_size", None) or 0) * experts
        return cls(
            parameters=parameters,
            weights=sum(weight.numel() * weight.element_size() for weight in model.parameters()),
            blocks=len(blocks) or config.num_hidden_layers,
            block=max(blocks, default=parameters),
            outside=max(parameters - sum(blocks), 0),
            hidden=hidden,
            intermediate=max(getattr(config, "intermediate_size", None) or 4 * hidden, expert),
            vocabulary=config.vocab_size,
        )


@dataclass(frozen=True)
class Gpu:
    """Bytes of one GPU."""

    states: int
    gathered: int
    activations: int
    logits: int
    step: int

    @property
    def total(self) -> int:
        """The most at one time."""
        passing = max(self.activations + self.logits, self.step)
        return self.states + self.gathered + passing + _AROUND

    def fits(self) -> list[int]:
        """The common GPUs that it fits, by the GB of their names."""
        return [name for name in GPUS if self.total <= _USABLE * name * 2**30]


def gpu(shape: Shape, params: TrainParams, place: Place, tokens: int) -> Gpu:
    """What one of the place's GPUs needs for passes of that many tokens."""
    shards = {
        "NO_SHARD": 1,
        "HYBRID_SHARD": place.processes,
    }.get(params.fsdp_sharding, place.world)
    whole = shards == 1 or params.fsdp_sharding == "SHARD_GRAD_OP"
    unsharded = shape.outside + 2 * shape.block
    kept = 2 * shape.blocks * shape.hidden
    anew = 24 * shape.hidden + 8 * shape.intermediate
    return Gpu(
        states=16 * shape.parameters // shards,
        gathered=2 * (shape.parameters if whole else min(unsharded, shape.parameters)),
        activations=tokens * (kept + anew),
        logits=_LOGITS * tokens * shape.vocabulary,
        step=4 * shape.parameters // shards,
    )


def moments(shape: Shape) -> int:
    """Bytes of AdamW's moments."""
    return 8 * shape.parameters


def states(shape: Shape) -> int:
    """Bytes of parameters, gradients and moments, unsharded: a CPU's training holds them all."""
    return 16 * shape.parameters


def host(shape: Shape, place: Place) -> int:
    """Bytes of host memory that a pod needs at the full state's writing, at a guess."""
    return moments(shape) + place.processes * _A_PROCESS


def shm(params: TrainParams, place: Place, row: float) -> int:
    """Bytes of `/dev/shm` that a pod's loaders fill with rows of that mean length in tokens.

    A batch in flight is three int64 a token, each process holding its share.
    """
    batch = 3 * 8 * params.train_batch * row
    return int(_BATCHES_IN_FLIGHT * batch * place.processes / place.world)


@dataclass(frozen=True)
class Disk:
    """Bytes that the checkpoints and the model will take."""

    model: int
    models: int
    """How many of them are kept: the final one, those of epochs and of samples."""
    state: int
    states: int
    """How many full states are there at one time."""

    @property
    def total(self) -> int:
        """The most at one time."""
        return self.models * self.model + self.states * self.state


def disk(shape: Shape, params: TrainParams, rows: int) -> Disk:
    """What a training on that many rows writes."""
    samples = rows * params.epochs
    by_samples = max(-(-samples // params.save_samples) - 1, 0) if params.save_samples else 0
    return Disk(
        model=shape.weights,
        models=1 + (params.epochs - 1 if params.save_epoch else 0) + by_samples,
        state=12 * shape.parameters,
        states=2 if params.epochs > 1 or by_samples else 1,
    )
