"""Settings of the model and of its trainings: pretrain, mixture, tune.

`TrainingConfig` has what every training takes; `PretrainConfig` and `TuneConfig` add their own, and so do their
`resources`. `MixtureConfig` says how much of the text is synthetic.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sbp_ray.config_base import Dtype, DtypeOrAuto, Fraction, Place, Resources, Section, Seed
from sbp_ray.stage_table import Arm

Beta = Annotated[float, Field(ge=0, lt=1)]  # AdamW divides by 1 - beta


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


class TrainingResources(Resources):
    """How much of the cluster a training takes, and what it puts up with; the trained weights do not depend on it."""

    min_workers: PositiveInt | None = None
    """Go on with as few ranks as this while nodes are missing, and come back to `num_workers` when they return;
    without it the number of ranks is fixed."""
    micro_batch_rows: PositiveInt = 1
    """Rows in a worker's forward pass; gradients accumulate up to `batch_rows`."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass instead of kept: none; all but matrix products and attention;
    all of a layer but its input. Less memory, more time, the same numbers."""
    shard_ranks: PositiveInt | None = None
    """Ranks that share one copy of weights, gradients and optimizer; each further group of so many holds another copy.
    Without one all ranks; where there are more than two nodes, of equally many ranks, the ranks of a node. It must
    divide the ranks; with `min_workers`, where it does not divide those that are left, the next divisor above it is
    taken."""
    reduce_every_micro_batch: bool = False
    """Sum gradients over the ranks after each micro-batch instead of once a step. Between micro-batches a rank then
    holds its own part of the float32 gradients, not all of them: 4 bytes a parameter less, for more messages."""
    compile: bool = False
    """Compile the decoder layers with torch.compile: half a minute and more before the first step."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints: the most work that a crash can cost."""
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None
    """First and last step of a trace by PyTorch's profiler, written to `profile/` of the artifact."""
    max_failures: NonNegativeInt = 3
    """Worker failures after which the training gives up, each resumed from the newest checkpoint."""
    max_preemptions: NonNegativeInt | None = None
    """Nodes taken back by the cloud (spot) after which it gives up; they are no failures. Without it, no limit."""
    in_process: bool = False
    """One rank, in the job's own process, with torch and transformers alone: Ray is neither started nor joined. For
    many small trainings, which would spend their time on starting workers. A crash is mended by the same command."""

    @model_validator(mode="after")
    def _check_workers(self) -> TrainingResources:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) is more than num_workers ({self.num_workers})")
        if self.num_gpus > 1 or (0 < self.num_gpus < 1 and self.num_workers > 1):
            raise ValueError(
                f"num_gpus is {self.num_gpus:g} for each of {self.num_workers} workers, which train on one GPU each "
                "or on none: set it to 1 or 0"
            )
        if self.profile_steps and self.profile_steps[0] > self.profile_steps[1]:
            raise ValueError(f"profile_steps {list(self.profile_steps)}: the first is after the last: turn them round")
        if self.in_process and self.num_workers > 1:
            raise ValueError(f"in_process is for one worker, and num_workers is {self.num_workers}")
        return self


class TrainingConfig(Section):
    """What base pretraining, synthesizer-tuning and joint pretraining have in common."""

    seq_len: PositiveInt = 4096
    """Tokens in a packed row."""
    batch_rows: PositiveInt
    """Rows in an optimizer step, all workers together."""
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
    dtype: DtypeOrAuto = "bfloat16"
    """Compute type; weights, optimizer state and reductions stay in float32. `auto` is bfloat16 on a GPU that has it,
    and on CPUs where the ranks measure their own step to be clearly faster in it than in float32. What it comes to is
    in the manifest, and may be another type on another processor, whose numbers then differ by more than rounding."""
    float8: bool = False
    """Matrix products of the layers in float8: needs `dtype: bfloat16`, an H100 or newer, and the extra `float8`."""
    dropout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of what attention and the MLP of each layer put out that is left out while training; without it, none."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Makes `model/` an exponential moving average of the weights, whose held-out losses are measured too: weights of a
    step before count so many times as much. 0.99 averages over some 100 steps."""
    seed: Seed = 0
    """Of the initial weights, the order of the rows and the dropout."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights become `model/`, of those at which the held-out loss is measured, some ten times a run: those with
    the lowest loss on the development split, or the last."""
    repack: bool = True
    """Text that is read again shares its rows with other documents each time, instead of the same ones. Each document
    is then read by itself: on an object store, where it would be a request, say false. Rows of `in_context` are cut
    elsewhere each time."""
    resources: TrainingResources = TrainingResources()

    def longest_document(self) -> tuple[str, int]:
        """The most tokens that see one another, and the setting that says so: each document of a row begins at
        position 0."""
        return "seq_len", self.seq_len

    @property
    def settled_dtype(self) -> Dtype:
        """`dtype`, when the ranks have settled what `auto` is."""
        assert self.dtype != "auto"
        return self.dtype

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingConfig:
        workers, micro_batch_rows = self.resources.num_workers, self.resources.micro_batch_rows
        rows = workers * micro_batch_rows
        if self.batch_rows % rows:
            raise ValueError(
                f"batch_rows ({self.batch_rows}) must be a multiple of resources.num_workers x "
                f"resources.micro_batch_rows ({workers} x {micro_batch_rows} = {rows})"
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
        if self.float8 and self.dtype != "bfloat16":
            raise ValueError(f"float8 needs dtype bfloat16, which is {self.dtype}")
        return self


class PretrainConfig(TrainingConfig):
    """The base LM (repetition arm) and the joint LM (sbp arm): equal settings, equal tokens."""

    arm: Arm = "repetition"
    """`repetition` repeats the real text and makes the base LM; `sbp` trains on real and synthetic text."""
    total_tokens: PositiveInt
    """Positions trained on in the whole run, the same for every arm."""
    base: Place | None = None
    """A Hugging Face causal LM, folder or hub name, to go on from instead of fresh weights of the shape `model`; its
    tokenizer must be the corpus' (`ingest.tokenizer`)."""
    teachers: tuple[Place, ...] = ()
    """Distillation: Hugging Face causal LMs, folders or hub names, with the corpus' tokenizer, whose mean probabilities
    the model learns beside the text. Each rank holds all of them, whole."""
    teacher_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Weight of what the teachers say of the next token; the text's own next token has the rest. Without it, a half."""

    in_context: bool = False
    """Related documents lie behind one another in a row, and each is read after those before it: a path along the pairs
    comes to every document once a pass. Needs the pairs, and writes nothing."""
    token_noise: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the tokens in whose place the model is shown any other one, anew each time a row is read. What it must
    say stays as it is, and marks such as <bos> are shown as they are."""
    noise_masks: bool = False
    """Show <related> in their place, which no document holds."""

    @model_validator(mode="after")
    def _masks_have_a_share(self) -> PretrainConfig:
        if self.noise_masks and self.token_noise is None:
            raise ValueError("noise_masks says how tokens are hidden, and token_noise how many: set token_noise too")
        return self

    def num_steps(self) -> int:
        """Optimizer steps, rounded up to whole batches."""
        return math.ceil(self.total_tokens / (self.batch_rows * self.seq_len))

    def num_positions(self) -> int:
        """Positions of all steps together."""
        return self.num_steps() * self.batch_rows * self.seq_len


class MixtureConfig(Section):
    """What the sbp arm reads."""

    synthetic_share: Fraction = 0.375
    """Share of the sbp arm's positions that are synthetic; refused when there is less synthetic text than that."""
    real_tokens: PositiveInt | None = None
    """With `synthetic_tokens`, instead of the share: positions of real text. They add up to `pretrain.total_tokens`."""
    synthetic_tokens: PositiveInt | None = None
    """Positions of synthetic text."""
    megadocs: bool = False
    """What was written from a d1, and d1 last, lie behind one another in a row, and each is read after those before it.
    d1 then counts among the synthetic positions."""
    real_tail: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the real positions that come last, when all synthetic text has been read: 1 reads synthetic text first
    and real text last. Without it both are mixed evenly until the end."""

    @model_validator(mode="after")
    def _check_that_share_or_tokens_are_given(self) -> MixtureConfig:
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

    condition: Literal["d1", "none"] = "d1"
    """What d2 is learnt after: `d1`; or `none`, a control: the d2 of the same pairs by themselves, for as many steps.
    It goes with `synthesize.condition=none`."""
    max_pair_len: PositiveInt | None = None
    """Longest pair, with its three marks; longer ones are dropped. Without one, `seq_len`. No pair is split, so rows
    twice as long are fuller: 98.6 % of the tuning rows of `configs/squad.yaml`
    is text, where it would be 97.0 %."""
    num_epochs: PositiveFloat = 1.0
    """Passes over the train pairs; below 1 a share of the pairs, chosen by their ids, and no others are packed."""
    max_validation_pairs: PositiveInt = 1000
    """Held-out pairs on which NLL(d2 | d1), NLL(d2 | random d) and NLL(d2) are measured."""
    resources: TrainingResources = TrainingResources()

    def longest_document(self) -> tuple[str, int]:
        """A pair is one document of its row."""
        return super().longest_document() if self.max_pair_len is None else ("max_pair_len", self.max_pair_len)

    @model_validator(mode="after")
    def _a_row_holds_any_pair(self) -> TuneConfig:
        if self.max_pair_len is not None and self.max_pair_len > self.seq_len:
            raise ValueError(f"max_pair_len ({self.max_pair_len}) is more than seq_len ({self.seq_len}), a whole row")
        return self
