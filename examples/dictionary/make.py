"""Make a tiny model and a data set that it can learn: word by word from one language to another.

    python examples/dictionary/make.py FOLDER

Writes FOLDER/model (Qwen2 architecture, a byte-level tokenizer, a chat template; seeded, so always
the same bytes), FOLDER/chats.jsonl, and FOLDER/dictionary.yaml, an lm-eval task. Nothing is fetched.
"""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

SEED = 7
WORDS = {
    "water": "lumo", "bread": "kasti", "house": "verun", "tree": "folda", "river": "sinta",
    "stone": "grako", "light": "belis", "night": "noxar", "fire": "pyren", "wind": "aveno",
    "hand": "manu", "eye": "okul", "road": "vianto", "bird": "plumi", "song": "kanto",
    "salt": "salin", "moon": "selen", "snow": "nevo", "wolf": "lupar", "star": "astri",
}  # fmt: skip
ROWS = 9000
QUESTIONS = 60
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
# transformers gives every tokenizer of this architecture Qwen2's own pre-tokenizer, so ours has to
# be trained with it (huggingface.co/Qwen/Qwen2.5-0.5B, tokenizer.json).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main(folder: Path) -> None:
    """Write model, data and task, unless they are there already."""
    if (folder / "dictionary.yaml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TQDM_DISABLE", "1")
    random_numbers = random.Random(SEED)
    chats = [chat(random_numbers) for _ in range(ROWS)]
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in chats]
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    make_model(folder / "model", [message["content"] for chat in chats for message in chat])
    make_task(folder, random_numbers)


def chat(random_numbers: random.Random) -> list[dict[str, str]]:
    """A question of two to four words, and its answer."""
    words = random_numbers.sample(sorted(WORDS), random_numbers.randint(2, 4))
    return [
        {"role": "user", "content": "Translate word by word: " + " ".join(words)},
        {"role": "assistant", "content": " ".join(WORDS[word] for word in words)},
    ]


def make_model(folder: Path, texts: list[str]) -> None:
    """A model of 0.8 million random parameters with a tokenizer trained on the texts."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*texts[:2000], "system user assistant"], trainer)
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(SEED)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            **ids,
        )
    )
    model.generation_config = GenerationConfig(**ids)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_task(folder: Path, random_numbers: random.Random) -> None:
    """A multiple-choice task for lm-eval: one word, four translations to choose from."""
    questions = []
    for _ in range(QUESTIONS):
        right, *wrong = random_numbers.sample(sorted(WORDS), 4)
        choices = [right, *wrong]
        random_numbers.shuffle(choices)
        other = random_numbers.choice(wrong)
        questions.append(
            {
                "question": f"Translate word by word: {right} {other}",
                "choices": [f"{WORDS[choice]} {WORDS[other]}" for choice in choices],
                "answer": choices.index(right),
            }
        )
    data = folder / "dictionary.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in questions))
    task = {
        "task": "dictionary",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    # JSON is YAML too.
    (folder / "dictionary.yaml").write_text(json.dumps(task, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
