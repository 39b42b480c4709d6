"""Settings of what is measured: eval, benchmarks, the judge."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sbp_ray.config_base import ForwardResources, Fraction, OutsidePrices, Place, Section, Seed


class EvalConfig(Section):
    """What is measured at the end, and on how much."""

    questions: Place | None = None
    """JSON lines, also compressed, of `{"question": text, "answers": [text, …], "title": text}` on the corpus itself,
    asked closed book; the first answer is the one that is scored. Without a file the report says "not measured"."""
    question_group_column: str = "title"
    """The questions' column that holds what the corpus calls its group."""
    max_questions: PositiveInt = 1000
    """Questions asked about each split, drawn at random; and facts asked for, of each number of statements."""
    truth: Place | None = None
    """The `truth.json` that jobs/bios.py wrote beside the corpus: what is recalled of it, and what synthetic texts say
    of it, is counted. Without one the report says "not measured"."""
    found_elsewhere: Place | None = None
    """`answer.txt` of an experiment on the same corpus, which the report says beside its own answer: a run has no
    controls of its own."""
    max_validation_documents: PositiveInt = 1000
    """Held-out documents whose perplexity is measured, drawn at random."""
    quality_sample: PositiveInt = 2000
    """Synthetic documents, real documents and mined pairs that the quality table is computed on, drawn at random."""
    duplicate_sample: PositiveInt = 1_000_000
    """Documents in which duplicates are looked for, drawn at random: of synthetic and of real text as many, or all."""
    num_samples: PositiveInt = 12
    """Synthetic documents shown in the report beside their d1 and the nearest real document."""
    seed: Seed = 0
    """Draws questions, documents and samples."""
    resources: ForwardResources = ForwardResources(num_workers=3)
    """Of each task; there are three: one for each arm's checkpoint, and one for the embedder."""


class BenchmarkConfig(Section):
    """One benchmark: a local file of questions or texts, or one of lm-eval's own tasks."""

    like: str | None = None
    """The benchmark of docs/benchmarks.md whose prompt, measures and shots it has, or one of lm-eval's own tasks;
    without it, the one of its own name."""
    file: Place | None = None
    """JSON lines, also compressed, or a plain text for `text`, in the form of docs/benchmarks.md. Without one lm-eval's
    own task runs, which downloads its data."""
    fewshot_file: Place | None = None
    """Questions of the same form that are shown answered before the one that is asked; without one they are drawn from
    those of `file` that are not asked."""
    num_fewshot: NonNegativeInt | None = None
    """Answered questions before the one that is asked; without it, what is usual for the benchmark."""

    @model_validator(mode="after")
    def _shots_go_with_a_file(self) -> BenchmarkConfig:
        if self.fewshot_file is not None and self.file is None:
            raise ValueError("fewshot_file is given and no file: give both, or none for one of lm-eval's own tasks")
        return self


class JudgeResources(OutsidePrices):
    """How the judge is reached, how patiently it is asked, and what it costs. No verdict depends on it."""

    api_key_env: str = "JUDGE_API_KEY"
    """The environment variable that holds the key; an endpoint without keys takes any."""
    attempts: PositiveInt = 3
    """Times that a question is asked where the endpoint is busy, fails or is not there, before its failure counts."""
    max_failures: NonNegativeInt = 20
    """Questions without a verdict after which no more are asked; what was judged by then is reported."""
    timeout_s: PositiveFloat = 60.0
    """Longest wait for an answer."""
    at_once: PositiveInt = 4
    """Questions asked at the same time."""


class JudgeConfig(Section):
    """An OpenAI-compatible language model that judges synthetic text by the prompts in sbp_ray/evaluation/judging."""

    base_url: str
    """Of the endpoint, such as `https://host/v1`."""
    model: str
    """What the endpoint calls the judge."""
    sample: PositiveInt = 100
    """Documents or pairs of each kind that are judged, drawn at random."""
    max_answer_tokens: PositiveInt = 512
    """Longest answer; a judge that reasons aloud first needs more."""
    max_chars: PositiveInt = 6000
    """Longer documents are cut to this before they are shown."""
    min_agreement: Fraction = 0.8
    """Share of the labelled cases shipped with sbp_ray that the judge must get right to be believed."""
    resources: JudgeResources = JudgeResources()


class BenchmarksConfig(Section):
    """Public benchmarks and a judge. Nothing that is trained depends on them: they can be added to a finished run."""

    tasks: dict[str, BenchmarkConfig] = Field(default={})
    """By name; docs/benchmarks.md has the list. Without any the report says "not measured"."""
    max_examples: PositiveInt | None = 1000
    """Questions asked of each benchmark, drawn by their ids, the same for every model; without it, all."""
    context_tokens: PositiveInt | None = None
    """Longer prompts lose their beginning; without it, `pretrain.seq_len`."""
    seed: Seed = 0
    """Draws questions and documents."""
    judge: JudgeConfig | None = None
    """Without one, factuality, relevance and copying as a reader sees them are "not measured"."""
