"""What the benchmarks read: chats of mixed lengths, and a tiny model whose tokenizer knows them."""

import json
import random
from pathlib import Path

from examples.dictionary.make import make_model

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "had",
    "by",
    "not",
    "word",
    "but",
    "what",
    "some",
    "we",
    "can",
    "out",
    "other",
    "were",
    "all",
    "there",
    "when",
    "up",
    "use",
    "your",
    "how",
    "said",
    "an",
    "each",
    "she",
    "which",
    "do",
    "their",
    "time",
    "if",
    "will",
    "way",
    "about",
    "many",
    "then",
    "them",
    "write",
    "would",
    "like",
    "so",
    "these",
    "her",
    "long",
    "make",
]


def make_chats(path: Path, rows: int, *, mean_words: int, seed: int = 0) -> Path:
    """Chats with a long tail of lengths: most are short, a few many times as long."""
    numbers = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            turns = numbers.choice((1, 1, 1, 2, 3))
            messages = []
            for _ in range(turns):
                for role in ("user", "assistant"):
                    words = max(2, int(numbers.expovariate(1 / (mean_words / turns / 2))))
                    text = " ".join(numbers.choices(WORDS, k=words))
                    messages.append({"role": role, "content": text})
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def model(folder: Path) -> Path:
    """A Qwen2 model of 0.9 million parameters and a vocabulary of 512."""
    path = folder / "model"
    if not path.exists():
        make_model(path, [" ".join(WORDS)] * 200)
    return path
