"""The trained weights made a model that can be loaded, served and understood, then published."""

import logging
from pathlib import Path
from typing import Any

from steps import files
from steps.errors import DataError
from steps.weights import refuse_diverged

log = logging.getLogger(__name__)


def publish(
    weights: Path,
    model: Path,
    *,
    base: Path,
    chat_template: str,
    stop_ids: tuple[int, ...],
    card: str,
) -> None:
    """Complete the folder of weights and rename it to `model`; nothing is copied.

    Adds the base model's tokenizer with the chat template that was trained with, a generation
    config that stops where the template's turns end, and the model card, all with the rights that
    a new file has. Raises DataError where the folder then lacks something, or a weight is no number.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(weights)
    _generation_config(base, tokenizer, stop_ids).save_pretrained(weights)
    readme = weights / "README.md"
    readme.write_text(card, encoding="utf-8")
    # safetensors closes its files to all but this user, and a model is served by another one.
    for file in weights.iterdir():
        if file.is_file():
            file.chmod(readme.stat().st_mode)
    _check(weights)
    refuse_diverged(weights)
    files.replace_folder(weights, model)


def _generation_config(base: Path, tokenizer: Any, stop_ids: tuple[int, ...]) -> Any:
    from transformers import GenerationConfig

    try:
        config: Any = GenerationConfig.from_pretrained(base)
    except OSError:
        config = GenerationConfig()  # type: ignore[no-untyped-call]
    known = config.eos_token_id
    known = [] if known is None else known if isinstance(known, list) else [known]
    ends = sorted({*known, *stop_ids})
    config.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if not config.do_sample:
        # Sampling settings beside greedy decoding are refused when the config is saved.
        config.temperature = config.top_p = config.top_k = None
    return config


def _check(folder: Path) -> None:
    needed = {
        "config.json": ["config.json"],
        "weights": ["*.safetensors", "pytorch_model*.bin"],
        "a tokenizer": ["tokenizer.json"],
        "a chat template": ["chat_template.jinja"],
        "generation_config.json": ["generation_config.json"],
    }
    missing = [
        name
        for name, patterns in needed.items()
        if not any(next(folder.glob(pattern), None) for pattern in patterns)
    ]
    if missing:
        raise DataError(f"{folder}: the trained model lacks {', '.join(missing)}")
