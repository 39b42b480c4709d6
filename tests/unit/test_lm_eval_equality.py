"""Our scores beside those of lm-eval alone: its own task files on the same questions, its own Hugging Face model.

The questions are ours, in the columns that lm-eval's tasks expect of their data sets, and again in the form of
docs/benchmarks.md.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import torch
import yaml
from lm_eval import tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml

from sbp_ray.config import Config, ModelConfig
from sbp_ray.evaluation.benchmarks.builtin import BUILT_IN
from sbp_ray.evaluation.benchmarks.harness import Answers, PackedLM, ask
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.model import build_model
from sbp_ray.text.tokenizer import special_ids, train_tokenizer

MAX_LENGTH = 160  # some of mmlu's prompts are longer
TOPICS = ["river", "stone", "bridge", "castle", "winter", "army", "market", "music", "garden", "train"]
NUM = 10
MAX_GENERATED = 8


def lines(*, shots: bool) -> dict[str, tuple[list[dict], list[dict]]]:
    """For each benchmark rows as lm-eval's data set has them, and ours."""
    found: dict[str, tuple[list[dict], list[dict]]] = {}
    for number, topic in enumerate(TOPICS[::-1] if shots else TOPICS):
        other = TOPICS[(number + 3) % NUM]
        choices = [f"the {topic}", f"an old {other} of some size", f"{other} and {topic}", "none"]
        gold = number % 4
        query = f"What stands by the {topic}, near number {number}"
        letters = {"text": choices, "label": list("ABCD")}
        for name in ("arc_easy", "arc_challenge"):
            theirs = {"question": query, "choices": letters, "answerKey": "ABCD"[gold]}
            add(found, name, theirs, {"query": query, "choices": choices, "gold": gold})
        add(
            found,
            "openbookqa",
            {"question_stem": query, "choices": letters, "answerKey": "ABCD"[gold]},
            {"query": query, "choices": choices, "gold": gold},
        )
        support = f" The {topic} is old." if number % 2 else ""
        distractors = {f"distractor{i}": choices[i - 1] for i in (1, 2, 3)}
        add(
            found,
            "sciq",
            {"question": query, "support": support, "correct_answer": choices[3], **distractors},
            {"query": query, "context": support, "choices": choices, "gold": 3},
        )
        add(
            found,
            "piqa",
            {"goal": query, "sol1": choices[0], "sol2": choices[1], "label": gold % 2},
            {"query": query, "choices": choices[:2], "gold": gold % 2},
        )
        sentence = f"The {topic} is larger than the {other} since _ has more stone."
        add(
            found,
            "winogrande",
            {"sentence": sentence, "option1": choices[0], "option2": choices[1], "answer": str(gold % 2 + 1)},
            {"query": sentence, "choices": choices[:2], "gold": gold % 2},
        )
        endings = [f"{choice}  [title] away" for choice in choices]
        parts = {"ctx_a": f"A man [sub] sees a {topic}.", "ctx_b": "he then" if number % 2 else ""}
        add(
            found,
            "hellaswag",
            {
                "activity_label": "Looking",
                "endings": endings,
                "label": str(gold),
                **parts,
            },
            {
                "activity": "Looking",
                "query": "unused",
                "choices": endings,
                "gold": gold,
                **parts,
            },
        )
        answers = [f"{topic} {other}", topic, f"the {other}"]
        add(
            found,
            "triviaqa",
            {"question": query, "answer": {"aliases": answers}},
            {"question": query, "answers": answers},
        )
        add(found, "webqs", {"question": query, "answers": list(answers)}, {"question": query, "answers": answers})
        text = f"The {topic} was built in winter and the {other} in summer, by the army of the old {topic}"
        add(
            found,
            "lambada_openai",
            {"text": text},
            {"context": text.rpartition(" ")[0], "target": text.rpartition(" ")[2]},
        )
        # Nothing repeats: where two windows read the same tokens, lm-eval alone confuses which of them are graded.
        page = "\n".join(f"{TOPICS[(number * i) % NUM]} {i * i} {TOPICS[(number + 7 * i) % NUM]}" for i in range(150))
        add(found, "wikitext", {"page": page}, {"text": page})
        for subject in ("anatomy", "abstract_algebra"):
            add(
                found,
                f"mmlu_{subject}",
                {"question": query, "choices": choices, "answer": gold},
                {"query": query, "subject": subject, "choices": choices, "gold": gold},
            )
    return found


def add(found: dict[str, tuple[list[dict], list[dict]]], name: str, theirs: dict, ours: dict) -> None:
    columns = found.setdefault(name, ([], []))
    columns[0].append(theirs)
    columns[1].append(ours | {"id": f"{name}-{len(columns[1])}"})


QUESTIONS, SHOTS = lines(shots=False), lines(shots=True)
FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "sciq": "sciq/sciq.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "webqs": "webqs/webqs.yaml",
    "mmlu_anatomy": "mmlu/default/mmlu_anatomy.yaml",
    "mmlu_abstract_algebra": "mmlu/default/mmlu_abstract_algebra.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "wikitext": "wikitext/wikitext.yaml",
}
"""lm-eval's own task files."""
NUM_FEWSHOT = {"triviaqa": 1, "webqs": 1, "mmlu_anatomy": 5, "mmlu_abstract_algebra": 5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose answers differ from one another."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    texts = [text for rows, _ in QUESTIONS.values() for row in rows for text in row.values() if isinstance(text, str)]
    tokenizer = train_tokenizer(texts, 400)
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


def alone(checkpoint: Path, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What lm-eval says by itself: its numbers, and its samples."""
    config = load_yaml(Path(tasks.__file__).parent / FILES[name], recursive=True)
    split = config.get("test_split") or config["validation_split"]
    shots = config.get("fewshot_split") or config.get("training_split")
    data = {split: datasets.Dataset.from_list(QUESTIONS[name][0])}
    if shots:
        data[shots] = datasets.Dataset.from_list(SHOTS[name][0])
    for key in ("training_split", "validation_split", "test_split"):
        if config.get(key) not in data:
            config.pop(key, None)
    config |= {"custom_dataset": lambda **_: data, "num_fewshot": NUM_FEWSHOT.get(name, 0)}
    if name == "triviaqa":
        config["generation_kwargs"] = {**config["generation_kwargs"], "max_gen_toks": MAX_GENERATED}
    if name == "webqs":  # its own way to show an answer fails in this release
        config["fewshot_config"] = {"doc_to_target": lambda doc: sorted(doc["answers"])[0]}
    for key in ("tag", "include"):
        config.pop(key, None)
    # A whole text brings its own <bos>.
    bos = {} if name == "wikitext" else {"add_bos_token": True}
    lm = HFLM(str(checkpoint), device="cpu", dtype="float32", batch_size=4, max_length=MAX_LENGTH, **bos)
    no_index = tasks.TaskManager(include_defaults=False)  # reading all task files takes many seconds
    task = ConfigurableTask(config=config)
    found = lm_eval.simple_evaluate(lm, tasks=[task], bootstrap_iters=0, task_manager=no_index)
    assert found is not None
    [numbers] = found["results"].values()
    [samples] = found["samples"].values()
    return numbers, samples


def ours(checkpoint: Path, folder: Path, name: str, like: str) -> Answers:
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS[name][1])))
    (folder / "shots.jsonl").write_text("\n".join(map(json.dumps, SHOTS[name][1])))
    task = {"like": like, "file": f"{folder}/asked.jsonl", "fewshot_file": f"{folder}/shots.jsonl"}
    [asked] = choose_questions(settings({"mine": task}, context_tokens=MAX_LENGTH))
    return ask(PackedLM(str(checkpoint), max_length=MAX_LENGTH, device="cpu", batch_tokens=1024), asked)


def settings(tasks: dict[str, Any], **benchmarks: Any) -> Config:
    tree = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text())
    return Config.model_validate(tree | {"benchmarks": {"tasks": tasks, **benchmarks}})


def mean(answers: Answers, key: str) -> float:
    return sum(record[key] for record in answers.records.values()) / len(answers.records)


@pytest.mark.parametrize(
    ("name", "like", "metrics"),
    [
        ("arc_easy", "arc_easy", ("acc", "acc_norm")),
        ("arc_challenge", "arc_challenge", ("acc", "acc_norm")),
        ("sciq", "sciq", ("acc", "acc_norm")),
        ("piqa", "piqa", ("acc", "acc_norm")),
        ("openbookqa", "openbookqa", ("acc", "acc_norm")),
        ("hellaswag", "hellaswag", ("acc", "acc_norm")),
        ("winogrande", "winogrande", ("acc",)),
        ("triviaqa", "triviaqa", ("exact_match",)),
        ("webqs", "webqs", ("exact_match",)),
        ("mmlu_anatomy", "mmlu", ("acc",)),
        ("mmlu_abstract_algebra", "mmlu", ("acc",)),
        ("lambada_openai", "lambada", ("acc",)),
    ],
)
def test_a_benchmark_gives_what_lm_eval_alone_gives(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    like: str,
    metrics: tuple[str, ...],
) -> None:
    monkeypatch.setitem(BUILT_IN["triviaqa"].task["generation_kwargs"], "max_gen_toks", MAX_GENERATED)  # quicker
    numbers, samples = alone(checkpoint, name)
    answers = ours(checkpoint, tmp_path, name, like)
    assert len(answers.records) == len(samples) == NUM
    for metric in metrics:
        [theirs] = [value for key, value in numbers.items() if key.partition(",")[0] == metric]
        assert mean(answers, metric) == pytest.approx(theirs), metric
    if name == "triviaqa":
        return  # lm-eval alone scores no likelihood there
    for record, sample in zip(answers.records.values(), samples, strict=True):
        likelihoods = [resps[0][0] for resps in sample["resps"]]
        nearest = min(likelihoods, key=lambda found: abs(found + record["nll"]))
        assert record["nll"] == pytest.approx(-nearest, rel=1e-4)


def test_a_text_gives_what_lm_eval_alone_gives(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm-eval's wikitext first takes out WikiText's own marks, of which ours has none."""
    numbers, _ = alone(checkpoint, "wikitext")
    answers = ours(checkpoint, tmp_path, "wikitext", "text")
    nats, num_bytes = (sum(record[key] for record in answers.records.values()) for key in ("nll", "bytes"))
    assert nats / num_bytes / math.log(2) == pytest.approx(numbers["bits_per_byte,none"], rel=1e-5)


def test_what_differs_is_seen(checkpoint: Path, tmp_path: Path) -> None:
    """Another checkpoint's answers are not within the tolerance of the tests above."""
    answers = ours(checkpoint, tmp_path, "arc_easy", "arc_easy")
    others = ours(checkpoint, tmp_path, "openbookqa", "openbookqa")  # the same questions, another prompt
    assert mean(answers, "nll") != pytest.approx(mean(others, "nll"), rel=1e-4)
