"""A causal language model in a folder, held against its own config.json, and loaded or refused.

A model comes from elsewhere: transformers raises whatever its files provoke, and where weights are
missing it makes up random ones. Here each of these is a DataError that names the folder.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steps.errors import ConfigError, DataError, volume_error

log = logging.getLogger(__name__)

_NAMED = 3
"""Weights that a message names."""


def outline(folder: Path) -> Any:
    """The model with names and shapes of its weights, but not their values: known in a second.

    Where the weights are not there yet, config.json alone tells. Raises what `load` raises.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin")):
        model, unexpected = _load(folder, device_map="meta")
        if unexpected:
            log.warning(
                "%s: config.json has no place for some of the weights, which count for nothing: %s",
                folder,
                _some(unexpected),
            )
        return model
    by_config: Any = AutoModelForCausalLM.from_config
    with _told(folder), torch.device("meta"):
        return by_config(AutoConfig.from_pretrained(folder))


def load(folder: Path, **options: Any) -> Any:
    """The model, as transformers' `from_pretrained` loads it with these options.

    Raises DataError where a file is broken, the architecture is unknown, or the weights are not
    those that config.json describes; ConfigError where a GPU's memory is too small.
    """
    return _load(folder, **options)[0]


def _load(folder: Path, **options: Any) -> tuple[Any, list[str]]:
    """The model, and the names of weights that have no place in it."""
    from transformers import AutoModelForCausalLM

    with _told(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    model, found = loaded
    differing = [
        f"{name} has the shape {_shape(here)} instead of {_shape(described)}"
        for name, here, described in sorted(found["mismatched_keys"])
    ]
    missing = [f"{name} is missing" for name in sorted(found["missing_keys"])]
    if differing or missing:
        raise DataError(
            f"{folder}: the weights are not those that config.json describes: "
            f"{_some(differing + missing)}; fetch the model again, or mend its config.json"
        )
    return model, sorted(found["unexpected_keys"])


def refuse_diverged(folder: Path) -> None:
    """Raise DataError where a weight is no number: the last step's loss does not show what it did."""
    import torch
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no mapping
                if not torch.isfinite(file.get_tensor(name)).all():
                    raise DataError(
                        f"training diverged: {name} in {path} holds what is no number; "
                        "lower --learning-rate or raise --lr-warmup"
                    )


def refuse_unknown(model: Any, folder: Path, token: int) -> None:
    """Raise DataError where the model, which lies in the folder, does not know the token."""
    known = model.get_input_embeddings().weight.shape[0]
    if token >= known:
        raise DataError(
            f"{folder}: its tokenizer gives the token {token}, but its embedding has {known:,} "
            "tokens; take the tokenizer that belongs to the model, or enlarge the embedding"
        )


def positions(model: Any) -> int | None:
    """Most tokens that the model can read at all; None where rotary positions go on for ever."""
    config = model.config
    if getattr(config, "rope_parameters", None):
        return None
    length: int | None = getattr(config, "max_position_embeddings", None)
    return length


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{folder}: the model does not fit into the GPU's memory") from error
    except Exception as error:  # the files are others' work: they can provoke whatever they like
        said = " ".join(str(error).split())
        raise volume_error(error) or DataError(
            f"{folder}: the model cannot be loaded: {type(error).__name__}: {said}"
        ) from error


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes))


def _some(told: list[str]) -> str:
    more = len(told) - _NAMED
    return ", ".join(told[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
