"""The corpus' tokenizer: byte-level BPE trained here, or a given one, with the three special tokens SBP needs.

Byte-level, so that every text has tokens and comes back from them unchanged. Documents are encoded as plain text
throughout: a document that happens to contain `<|eos|>` cannot end a sequence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sbp_ray.errors import SbpError, one_line

logger = logging.getLogger(__name__)

BOS = "<|bos|>"
EOS = "<|eos|>"
RELATED = "<|related|>"
_LONG_RUN = 256
_RUN = re.compile("|".join(f"{kind}{{{_LONG_RUN}}}" for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")))
MIN_VOCAB_SIZE = 256 + 3  # every byte, and the special tokens


class SpecialIds(NamedTuple):
    """Token ids of the pair format's marks."""

    bos: int
    eos: int
    related: int


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE.

    Args:
        texts: read once, in order; only their pre-token counts are kept in memory.
        vocab_size: upper limit of the vocabulary, special tokens included; short texts may give fewer.

    Raises:
        SbpError: `vocab_size` has no room for the bytes and the special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise SbpError(
            f"ingest.vocab_size ({vocab_size}) cannot hold the 256 bytes and 3 special tokens: "
            f"use at least {MIN_VOCAB_SIZE}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, RELATED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_without_long_runs(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=[RELATED],
        clean_up_tokenization_spaces=False,
    )


def _without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """Texts in pieces where a run of one kind of character is longer than any word: the time to train on a pre-token is
    quadratic in its length."""
    for text in texts:
        parts = text.split()
        num_blanks = len(text) - sum(map(len, parts))
        if max(map(len, parts), default=0) < _LONG_RUN and num_blanks < len(parts) + _LONG_RUN:
            yield text  # nearly all; much quicker than to look for runs
            continue
        start = 0
        for run in _RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Load a Hugging Face tokenizer from a folder or by its hub name, and add the special tokens that it lacks.

    Raises:
        SbpError: it cannot be found or read, or has no fast (Rust) implementation.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise SbpError(
            f"tokenizer {path}: cannot be loaded ({one_line(error)}): give a Hugging Face tokenizer folder, "
            "or a hub name where there is a network"
        ) from None
    if not tokenizer.is_fast:
        raise SbpError(f"tokenizer {path}: has no fast implementation: give one with a tokenizer.json")
    ours = {"bos_token": BOS, "eos_token": EOS}
    tokenizer.add_special_tokens({name: mark for name, mark in ours.items() if getattr(tokenizer, name) is None})
    tokenizer.add_tokens([RELATED], special_tokens=True)  # does nothing where it is known
    return tokenizer


def warn_of_lost_case(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Say of a tokenizer that lower-cases, such as that of most BERTs, what comes of it."""
    spelt = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("The River", "the river")]
    if spelt[0] == spelt[1] and tokenizer.unk_token_id not in spelt[0]:
        logger.warning(f"tokenizer {name}: knows no capital letters: what is trained on and written will have none")


def special_ids(tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
    """Ids of the marks in a tokenizer from `train_tokenizer` or `load_tokenizer`."""
    return SpecialIds(
        bos=tokenizer.convert_tokens_to_ids(tokenizer.bos_token),
        eos=tokenizer.convert_tokens_to_ids(tokenizer.eos_token),
        related=tokenizer.convert_tokens_to_ids(RELATED),
    )


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens; marks that are spelt out in a text are ordinary characters."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]
