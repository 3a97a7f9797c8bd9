"""The tokenizer of this domain, and the quality phrase."""

import json
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from hive_ray.shapes.edits import vocabulary_texts

MAX_TOKENS = 32
"""Maximum length of a text with start and end tokens; the longest instruction with the quality phrase has 28."""

QUALITIES = ("one", "two", "three", "four", "five")
QUALITY_PHRASE = "image quality is {level} out of five"


def with_quality(text: str, level: int) -> str:
    """Append the quality phrase of a level, 1 to 5, to a text."""
    return f"{text}, {QUALITY_PHRASE.format(level=QUALITIES[level - 1])}"


def shapes_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for every word of this domain."""
    phrases = [QUALITY_PHRASE.format(level=level) for level in QUALITIES]
    more = "the a an and, of . left right middle move please object picture"
    return train_tokenizer([*vocabulary_texts(), *phrases, more], MAX_TOKENS)


def train_tokenizer(corpus: list[str], max_tokens: int) -> CLIPTokenizer:
    """Train a CLIP tokenizer with one token for every word of the corpus; other words are split into letters."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator(corpus * 3, trainer)  # a pair of letters must occur twice to be merged
    merges: Any = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_tokens)
