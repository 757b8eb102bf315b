"""A machine with CUDA devices that are none: torch's calls to the hardware, answered by the CPU.

Python imports this where the folder is on PYTHONPATH, so that instructlab-training's own loop, and
ours around it, run unchanged in processes that torchrun has started. accelerate finds a machine
without GPUs in them, and shares the work by DDP over gloo instead of FSDP over NCCL.
"""

import os
from typing import Any

import torch

_to = torch.Tensor.to


def _to_cpu(tensor: torch.Tensor, *places: Any, **options: Any) -> torch.Tensor:
    def mapped(value: Any) -> Any:
        return "cpu" if isinstance(value, torch.device) and value.type == "cuda" else value

    named = {name: mapped(value) for name, value in options.items()}
    moved: torch.Tensor = _to(tensor, *map(mapped, places), **named)
    return moved


def _is_available() -> bool:
    return "LOCAL_RANK" not in os.environ


def _nothing(*_: Any, **__: Any) -> None:
    pass


os.environ["ACCELERATE_USE_CPU"] = "true"
cuda: Any = torch.cuda
cuda.is_available = _is_available
cuda.device_count = lambda: int(os.environ.get("CUDA_DEVICES", "1"))
cuda.get_device_capability = lambda _=None: (7, 0)
cuda.set_device = cuda.empty_cache = _nothing
cuda.memory_allocated = lambda _=None: 0
cuda.memory_stats = lambda _=None: {"num_alloc_retries": 0}
tensor: Any = torch.Tensor
tensor.to = _to_cpu
tensor.cuda = lambda tensor, *_, **__: tensor
