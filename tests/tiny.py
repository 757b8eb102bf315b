"""Tiny models, made on the spot: random weights, a byte-level tokenizer, and a chat template."""

from pathlib import Path
from typing import Any, Literal

Architecture = Literal["qwen2", "llama", "gpt_neox"]

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Ask me anything, and I will answer.",
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system tool one two three four five six seven eight nine ten",
    "Translate: water, bread, house, tree. Reply with one word a line.",
] * 50

# https://huggingface.co/Qwen/Qwen2.5-0.5B/blob/main/tokenizer.json: transformers gives any
# tokenizer of this architecture that pre-tokenizer, so ours is trained with it.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(
    template: str | None = CHATML,
    *,
    eos: str = "<|im_end|>",
    special: tuple[str, ...] = (),
    vocabulary: int = 400,
) -> Any:
    """A transformers tokenizer: byte-level BPE over a small corpus, with the special tokens given."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = list(dict.fromkeys(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special, eos]))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=tokens,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    loaded = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>"
    )
    if template is not None:
        loaded.chat_template = template
    return loaded


def make_model(
    folder: Path,
    architecture: Architecture = "qwen2",
    template: str | None = CHATML,
    *,
    seed: int = 0,
    **tokenizer: Any,
) -> Path:
    """Write a random model of about 100 thousand parameters to `folder`, and return the folder."""
    import torch
    from transformers import (
        GenerationConfig,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    loaded = make_tokenizer(template, **tokenizer)
    shape: dict[str, Any] = {
        "vocab_size": len(loaded),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": loaded.eos_token_id,
        "pad_token_id": loaded.pad_token_id,
    }
    torch.manual_seed(seed)
    model: Any
    if architecture == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(**shape, num_key_value_heads=2, tie_word_embeddings=True)
        )
    elif architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=loaded.eos_token_id, pad_token_id=loaded.pad_token_id
    )
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder
