"""Settings of the engines that write text: vLLM, its HTTP endpoint, and the synthesize job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sbp_ray.config_base import DtypeOrAuto, ForwardResources, Fraction, OutsidePrices, Place, Resources, Section, Seed


class EngineResources(Resources):
    """How many engines, and how much each takes and does at once; `num_cpus` and `num_gpus` are those of one engine."""

    min_replicas: NonNegativeInt = 1
    """Engines kept when idle."""
    max_replicas: PositiveInt = 1
    """Engines under load."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that hold one copy of the model together."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: a faster start, slower steps on a GPU."""
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
    checks_model: bool = True
    """Each engine must give held-out tokens what the trained model gave them before it takes requests."""
    upscale_delay_s: NonNegativeFloat = 10.0
    """How long there must be too much work before another engine is started."""
    downscale_delay_s: NonNegativeFloat = 600.0
    """How long an engine must be idle before it is stopped."""
    stalled_after_s: PositiveFloat = 300.0
    """An engine that has work and makes no step for so long is replaced. The synthesize job sends its requests again to
    another one after twice the time."""

    @model_validator(mode="after")
    def _replicas_are_named(self) -> EngineResources:
        if self.num_workers != 1:
            raise ValueError("num_workers is none of an engine's settings: set min_replicas and max_replicas")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not exceed max_replicas ({self.max_replicas})")
        return self


SPEED_ONLY = (
    "async_scheduling",
    "block_size",
    "compilation_config",
    "disable_custom_all_reduce",
    "kv_cache_memory_bytes",
    "max_num_batched_tokens",
    "optimization_level",
    "performance_mode",
    "scheduling_policy",
    "stream_interval",
)
"""Arguments of vLLM after which it samples from the same distribution as before."""
_OURS = {
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_num_seqs": "resources.max_num_seqs",
    "enforce_eager": "resources.enforce_eager",
    "tensor_parallel_size": "resources.tensor_parallel_size",
    "gpu_memory_utilization": "resources.gpu_memory_share",
}
"""Arguments of vLLM that are settings of ours."""


class EngineConfig(Section):
    """The vLLM engines behind Ray Serve."""

    dtype: DtypeOrAuto = "bfloat16"
    """Weights and activations in the engine. `auto` is bfloat16 on GPUs, and on CPUs where the machine that starts the
    engines is measured to multiply it clearly faster than float32; what has been begun in one type goes on in it."""
    max_model_len: PositiveInt = 8192
    """Longest d1 plus d2, in tokens."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's engine by their names there, such as `{kv_cache_dtype: fp8, quantization: fp8}`. What
    is known to change speed alone (`max_num_batched_tokens`, `performance_mode` …) is free to change between runs; all
    others decide what is written."""
    resources: EngineResources = EngineResources()

    @property
    def deciding_arguments(self) -> dict[str, Any]:
        """Of `vllm`, those that may change the distribution."""
        return {name: value for name, value in self.vllm.items() if name not in SPEED_ONLY}

    @model_validator(mode="after")
    def _no_setting_twice(self) -> EngineConfig:
        for name in self.vllm.keys() & _OURS:
            raise ValueError(f"vllm.{name} is a setting of its own: set engine.{_OURS[name]}")
        if "logits_processors" in self.vllm and not self.resources.num_gpus:
            raise ValueError("vllm.logits_processors: on CPUs the sampler is one, in the place of vLLM's: leave it out")
        return self


class ServiceConfig(Section):
    """Limits of the HTTP endpoint; `service` in serve_apps/config.yaml."""

    keys_file: Place | None = None
    """File with one bearer key a line, read again when it changes. Without one the keys are those of the environment
    variable SBP_RAY_API_KEYS, separated by commas; without any, only loopback is served."""
    max_tokens_in_flight: PositiveInt | None = None
    """Tokens (prompt and the most that may be written) that one engine takes on over HTTP before it answers 429;
    without one, what its key-value cache holds."""
    max_body_bytes: PositiveInt = 1_000_000
    """Larger bodies are refused with 413."""
    deadline_s: PositiveFloat = 300.0
    """Longest time for an answer, streams included; a request may ask for less in `timeout_s`."""
    num_ingresses: PositiveInt | None = None
    """Processes between Serve's proxy and the engines, each of 0.9 GiB; with a spare, requests are answered while one
    is replaced. Without a number two, and one on a cluster of fewer than four CPUs."""


class SynthesizeResources(Section):
    """How fast the synthesize job asks and scores, and what its nodes cost."""

    max_in_flight: PositiveInt | None = None
    """Samples that one sending actor keeps open; there is one for each of `engine.resources.max_replicas`. Without one,
    a quarter more than `engine.resources.max_num_seqs`: enough that no engine waits for the next."""
    commit_every_s: PositiveFloat = 30.0
    """Seconds between two commits of finished samples: the most work that is lost with a sending actor."""
    give_up_after_s: PositiveFloat = 3600.0
    """How long no engine may be heard of before the job stops; the same command goes on."""
    dollars_per_node_hour: NonNegativeFloat = 0.0
    """Price of a node, for the cost in progress lines, metrics and manifest; all nodes of the cluster count."""
    scoring: ForwardResources = ForwardResources()
    """What scores the samples for `max_nll_nats`, `min_gain_nats` and `keep_best`, when the engines have gone; on GPUs
    only with `num_gpus`."""


class RephraseResources(OutsidePrices):
    """Where the outside model answers, how patiently it is asked, and what it costs. Free to change between runs."""

    base_url: str
    """Of the endpoint, such as `https://host/v1`."""
    api_key_env: str = "REPHRASE_API_KEY"
    """The environment variable that holds the key; an endpoint without keys takes any."""
    at_once: PositiveInt = 16
    """Samples asked for at the same time."""
    timeout_s: PositiveFloat = 120.0
    """Longest wait for an answer, after which it is asked for again."""


class RephraseConfig(Section):
    """An outside instruct model, behind any OpenAI-compatible endpoint, that writes in the synthesizer's place."""

    model: str
    """What the endpoint calls it."""
    of: Literal["d1", "pair"] = "d1"
    """What it is given: d1; or d1 with a related d2, sample n with the n-th nearest of the mined ones in turn, and d1
    without any are left out."""
    instruction: str | None = None
    """What it is told, with {d1}, and for pairs {d2}, where they belong. Without one, to say the same in other words,
    or to write one text from what both say."""
    resources: RephraseResources

    @model_validator(mode="after")
    def _documents_are_shown(self) -> RephraseConfig:
        for mark in ("{d1}", "{d2}") if self.of == "pair" else ("{d1}",):
            if self.instruction is not None and mark not in self.instruction:
                raise ValueError(f"instruction has no {mark}, in whose place the document would stand: put it in")
        return self


class SynthesizeConfig(Section):
    """Which documents are d1, how the synthesizer samples, and what is kept."""

    condition: Literal["d1", "none", "continue"] = "d1"
    """What comes before d2: `d1`, as the synthesizer was tuned. Two controls are for a base LM in its place
    (`artifacts.synthesizer`): `none` samples from <bos> alone, and is for one tuned with `tune.condition=none` too;
    `continue` gives the first half of d1, since after all of it a base LM writes the end, and keeps what it goes on
    with."""
    num_documents: PositiveInt | None = None
    """How many documents of the train split are d1, chosen uniformly; without one, all of them."""
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
    max_nll_nats: float | None = None
    """Results are dropped which the synthesizer itself holds less likely than this: -log p(d2 | what came before), in
    nats a token of d2. All results are then scored once."""
    min_gain_nats: float | None = None
    """Results to which d1 is worth less than this are dropped: log p(d2 | d1) - log p(d2) under the synthesizer, in
    nats a token of d2. All results are then scored twice, with and without d1. With 0, what is likelier without d1
    goes; a limit that no result can miss, such as -100, only measures."""
    keep_best: PositiveInt | None = None
    """Keep no more than so many results of one d1: best of `samples_per_document`."""
    best_by: Literal["gain", "likelihood"] = "gain"
    """The best are those to which d1 is worth most, or those that are likeliest, a token."""
    rephrase: RephraseConfig | None = None
    """An outside model writes, in the synthesizer's place: no engine is started, and `temperature`, `top_p`,
    `max_tokens` and the seeds go to its endpoint."""
    keep_unfinished: bool = False
    """Keep results that reached `max_tokens` without ending."""
    finished_of: Place | None = None
    """Take the finished shards of this synthetic artifact, which may still be growing, instead of writing any: joint
    training can then begin on them."""
    max_bad_share: Fraction = 0.1
    """Above this share of samples that could not be written (d1 too long, engine refused) the stage stops. Free to
    change between runs."""
    resources: SynthesizeResources = SynthesizeResources()

    @property
    def needs_gain(self) -> bool:
        """Whether samples are chosen by what d1 is worth to them."""
        return self.min_gain_nats is not None or (self.keep_best is not None and self.best_by == "gain")

    @property
    def needs_scores(self) -> bool:
        return self.needs_gain or self.max_nll_nats is not None or self.keep_best is not None

    @model_validator(mode="after")
    def _an_outside_model_is_no_synthesizer(self) -> SynthesizeConfig:
        if self.rephrase is not None:
            ours = {"condition": self.condition != "d1", "finished_of": self.finished_of is not None}
            scored = {name: getattr(self, name) is not None for name in ("max_nll_nats", "min_gain_nats", "keep_best")}
            if name := next((name for name, is_set in (ours | scored).items() if is_set), None):
                raise ValueError(f"{name} is the synthesizer's, and with rephrase there is none: take one of them out")
        return self

    @model_validator(mode="after")
    def _gains_can_be_known(self) -> SynthesizeConfig:
        if self.needs_gain and self.condition != "d1":
            name = "keep_best" if self.min_gain_nats is None else "min_gain_nats"
            raise ValueError(
                f"{name} asks what d1 is worth, and condition={self.condition} does not give it: choose by likelihood "
                "(max_nll_nats, best_by=likelihood)"
            )
        if self.keep_best is not None and self.keep_best > self.samples_per_document:
            raise ValueError(
                f"keep_best ({self.keep_best}) must not exceed samples_per_document ({self.samples_per_document})"
            )
        return self
