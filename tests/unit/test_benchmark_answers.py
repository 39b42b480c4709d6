"""Every benchmark of docs/benchmarks.md asked of a small checkpoint, in both forms of its file.

Prompts and metrics are lm-eval's own; what is ours is the way of a line to its task, and which likelihood is kept: it
is computed here again from the model's logits.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from sbp_ray.config import Config, ModelConfig
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.harness import CheckpointLM, ask_questions
from sbp_ray.evaluation.benchmarks.measures import measures_of
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.model import build_model
from sbp_ray.text.tokenizer import special_ids, train_tokenizer

MAX_LENGTH = 160
QUERY, RIVER = "What stands by the river", ["the castle", "an old bridge of stone", "a market", "none"]
LETTERS = {"text": RIVER, "label": list("ABCD")}
CHOICE = {"query": QUERY, "choices": RIVER, "gold": 1}
SENTENCE = "The river is longer than the bridge since _ has more water."
WADING = {"ctx_a": "A man [sub] wades.", "ctx_b": "he then"}
NEVER_SHOWN = {"num_fewshot": 0}


class Case(NamedTuple):
    """A question in the plain form, in the data set's columns, and what is right after which prompt."""

    plain: dict[str, Any]
    columns: dict[str, Any]
    prompt: str
    right: str
    measures: tuple[str, ...]


OF_CHOICES = ("accuracy", "accuracy_by_length", "answer_nats_per_byte")
ASKED = f"Question: {QUERY}\nAnswer:"
CASES = {
    **{
        name: Case(CHOICE, {"question": QUERY, "choices": LETTERS, "answerKey": "B"}, ASKED, f" {RIVER[1]}", OF_CHOICES)
        for name in ("arc_easy", "arc_challenge")
    },
    "openbookqa": Case(
        CHOICE, {"question_stem": QUERY, "choices": LETTERS, "answerKey": "B"}, QUERY, f" {RIVER[1]}", OF_CHOICES
    ),
    "sciq": Case(
        {**CHOICE, "context": " The river is old."},
        {"question": QUERY, "support": " The river is old.", "correct_answer": RIVER[1]}
        | {"distractor1": RIVER[0], "distractor2": RIVER[2], "distractor3": RIVER[3]},
        f"The river is old.\n{ASKED}",
        f" {RIVER[1]}",
        OF_CHOICES,
    ),
    "piqa": Case(
        {**CHOICE, "choices": RIVER[:2]},
        {"goal": QUERY, "sol1": RIVER[0], "sol2": RIVER[1], "label": 1},
        ASKED,
        f" {RIVER[1]}",
        OF_CHOICES,
    ),
    "winogrande": Case(
        {"query": SENTENCE, "choices": ["the river", "the bridge"], "gold": 0},
        {"sentence": SENTENCE, "option1": "the river", "option2": "the bridge", "answer": "1"},
        "The river is longer than the bridge since the river",
        " has more water.",
        ("accuracy", "answer_nats_per_byte"),
    ),
    "hellaswag": Case(
        {"activity": "Wading", "query": "unused", "choices": RIVER, "gold": 1, **WADING},
        {"activity_label": "Wading", "endings": RIVER, "label": "1", **WADING},
        "Wading: A man wades. He then",
        f" {RIVER[1]}",
        OF_CHOICES,
    ),
    "mmlu": Case(
        {**CHOICE, "subject": "high_school_physics"},
        {"question": QUERY, "subject": "high_school_physics", "choices": RIVER, "answer": 1},
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        f"{QUERY}\nA. {RIVER[0]}\nB. {RIVER[1]}\nC. {RIVER[2]}\nD. {RIVER[3]}\nAnswer:",
        " B",
        ("accuracy", "answer_perplexity"),
    ),
    "triviaqa": Case(
        {"question": QUERY, "answers": ["the castle", "castle"]},
        {"question": QUERY, "answer": {"value": "the castle", "aliases": ["the castle", "castle"]}},
        f"Question: {QUERY}?\nAnswer:",
        " the castle",
        ("exact_match", "answer_nats_per_byte"),
    ),
    "webqs": Case(
        # lm-eval sorts, and drops what goes on from another answer: the first one is there as "market".
        {"question": QUERY, "answers": ["market hall", "castle", "market"]},
        {"question": QUERY, "answers": ["market hall", "castle", "market"]},
        ASKED,
        " market",
        ("exact_match", "answer_nats_per_byte"),
    ),
    "lambada": Case(
        {"context": "The castle stands by the old", "target": "river"},
        {"text": "The castle stands by the old river"},
        "The castle stands by the old",
        " river",
        ("accuracy", "answer_perplexity", "answer_nats_per_byte"),
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose answers differ from one another."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = train_tokenizer([text for case in CASES.values() for text in (case.prompt, case.right)], 400)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "ffn_size": 64}
    config = ModelConfig.model_validate({**shape, "vocab_size": len(tokenizer), "max_positions": 256})
    model = build_model(config, len(tokenizer), special_ids(tokenizer), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(
    checkpoint: Path, file: Path, like: str, *rows: dict, max_length: int = MAX_LENGTH, **task: Any
) -> dict[str, Any]:
    file.write_text("\n".join(map(json.dumps, rows)))
    tree = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text())
    benchmarks = {"tasks": {"mine": {"like": like, "file": str(file), **task}}, "context_tokens": max_length}
    [questions] = choose_questions(Config.model_validate(tree | {"benchmarks": benchmarks}))
    lm = CheckpointLM(str(checkpoint), max_length=max_length, device="cpu", batch_tokens=1024)
    return ask_questions(lm, questions)


def nll(checkpoint: Path, prompt: str, continuation: str) -> float:
    """From the model's logits, in nats: a `<bos>`, then prompt and continuation encoded as one text."""
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt + continuation, add_special_tokens=False)]
    num_scored = len(ids) - 1 - len(tokenizer.encode(prompt, add_special_tokens=False))
    logits_TV = model(torch.tensor([ids[:-1]])).logits[0]
    return float(cross_entropy(logits_TV[-num_scored:], torch.tensor(ids[-num_scored:]), reduction="sum"))


@pytest.mark.parametrize("like", CASES)
def test_a_benchmark_takes_both_forms_and_keeps_the_right_likelihood(
    checkpoint: Path, tmp_path: Path, like: str
) -> None:
    case, file = CASES[like], tmp_path / "asked.jsonl"
    found = answers(checkpoint, file, like, {**case.plain, "id": "q"}, **NEVER_SHOWN)
    assert found["records"] == answers(checkpoint, file, like, {**case.columns, "id": "q"}, **NEVER_SHOWN)["records"]
    assert measures_of(like, found["records"]) == case.measures
    assert found["records"]["q"]["nll"] == pytest.approx(nll(checkpoint, case.prompt, case.right), rel=1e-4)
    assert found["records"]["q"]["bytes"] == len(case.right.encode())


def test_a_text_is_scored_whole(checkpoint: Path, tmp_path: Path) -> None:
    """In windows that together predict every token once; one that fits is predicted after `<bos>`."""
    text = "The castle stands by the old river."
    found = answers(checkpoint, tmp_path / "t.jsonl", "text", {"id": "t", "text": text})
    assert found["records"]["t"]["nll"] == pytest.approx(nll(checkpoint, "", text), rel=1e-4)
    assert (found["records"]["t"]["bytes"], found["records"]["t"]["words"]) == (35, 7)
    assert measures_of("text", found["records"]) == ("nats_per_byte", "word_perplexity")
    longer = answers(checkpoint, tmp_path / "t.jsonl", "text", {"id": "t", "text": text * 40})
    assert math.isfinite(longer["records"]["t"]["nll"])
    assert longer["num_truncated"] == 0


def test_a_text_that_repeats_itself_is_scored_as_any_other(checkpoint: Path, tmp_path: Path) -> None:
    """Its last window reads the same tokens as the one before, and scores fewer of them."""
    text, tokenizer = "r\ni\nv\ne\nr\n" * 21, AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert (len(ids), ids[:-10]) == (210, ids[10:])  # ten tokens that come again and again
    model, total = AutoModelForCausalLM.from_pretrained(checkpoint), 0.0
    read = [tokenizer.bos_token_id, *ids]
    for start in range(0, len(ids), 40):  # windows of 40 tokens; the last one begins earlier, to be as long
        first = max(0, min(start, len(ids) - 40))
        logits_TV = model(torch.tensor([read[first : first + 40]])).logits[0]
        num_scored = min(40, len(ids) - start)
        target_T = torch.tensor(ids[start : start + 40])
        total += float(cross_entropy(logits_TV[-num_scored:], target_T, reduction="sum"))
    found = answers(checkpoint, tmp_path / "t.jsonl", "text", {"id": "t", "text": text}, max_length=40)
    assert found["records"]["t"]["nll"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(("like", "shots"), [("webqs", 1), ("triviaqa", 1), ("mmlu", 2), ("hellaswag", 1)])
def test_shown_questions_change_the_prompt(checkpoint: Path, tmp_path: Path, like: str, shots: int) -> None:
    case, shown = CASES[like], tmp_path / "shown.jsonl"
    shown.write_text(f"{json.dumps(case.plain)}\n" * shots)
    file = tmp_path / "asked.jsonl"
    found = answers(checkpoint, file, like, case.plain, fewshot_file=str(shown), num_fewshot=shots, max_length=256)
    # lm-eval shows webqs' answers by their first in the order of letters.
    right = " castle" if like == "webqs" else case.right
    description, _, question = case.prompt.rpartition("\n\n")
    description += "\n\n" if description else ""
    prompt = description + f"{question}{right}\n\n" * shots + question
    [record] = found["records"].values()
    assert record["nll"] == pytest.approx(nll(checkpoint, prompt, case.right), rel=1e-4)


def test_prompts_that_lose_their_beginning_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"id": number, "context": "by the old castle " * number, "target": "river"} for number in (1, 200)]
    assert answers(checkpoint, tmp_path / "asked.jsonl", "lambada", *rows)["num_truncated"] == 1


def test_an_answer_that_does_not_fit_the_context_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    rows = {"query": QUERY, "choices": ["none", "by the old castle " * 4], "gold": 1}
    with pytest.raises(SbpError, match=r"an answer of \d+ tokens does not fit into a context of 16: raise"):
        answers(checkpoint, tmp_path / "asked.jsonl", "piqa", rows, max_length=16)


REAL = Path(__file__).parents[3] / "shared/data/evals"


@pytest.mark.skipif(not REAL.exists(), reason="needs the real files")
@pytest.mark.parametrize(
    ("like", "name"),
    [
        ("arc_easy", "arc_easy_test"),
        ("arc_challenge", "arc_challenge_test"),
        ("hellaswag", "hellaswag_validation"),
        ("lambada", "lambada_oe"),
        ("openbookqa", "openbookqa_validation"),
        ("piqa", "piqa_validation"),
        ("sciq", "sciq_validation"),
        ("triviaqa", "triviaqa_rc_wikipedia_nocontext_validation"),
        ("webqs", "webquestions_test"),
        ("winogrande", "winogrande_xl_validation"),
    ],
)
def test_real_files_can_be_asked(like: str, name: str) -> None:
    tree = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text())
    tasks = {like: {"file": str(REAL / f"{name}.jsonl.gz")}}
    [questions] = choose_questions(Config.model_validate(tree | {"benchmarks": {"tasks": tasks, "max_examples": 40}}))
    assert len(questions.rows or ()) == 40
