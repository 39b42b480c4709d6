"""What is asked: files and names checked before any work, what was seen in training, and the numbers by hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from worked_on import WorkedOn

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.benchmarks.comparison import require_checkpoints
from sbp_ray.evaluation.benchmarks.lm_eval_tasks import own_task_names
from sbp_ray.evaluation.benchmarks.measures import benchmark_row
from sbp_ray.evaluation.benchmarks.question_sets import QuestionSet, choose_questions
from sbp_ray.evaluation.unseen import look_for, question_ngrams
from sbp_ray.report.page import environment
from sbp_ray.report.wording import NOT_MEASURED

CHOICE = {"id": 7, "query": "What flows?", "choices": ["a river", "a stone"], "gold": 0}


def settings(tasks: dict[str, Any], **benchmarks: Any) -> Config:
    tree = yaml.safe_load((Path(__file__).parent / "small.yaml").read_text())
    return Config.model_validate(tree | {"benchmarks": {"tasks": tasks, **benchmarks}})


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def question_set(path: Path, name: str, *rows: Any, **benchmarks: Any) -> QuestionSet:
    [found] = choose_questions(settings({name: {"file": write(path / "file.jsonl", *rows)}}, **benchmarks))
    return found


# Names and files


def test_a_file_for_an_unknown_benchmark_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"benchmarks.tasks.arc_eazy: no benchmark is called arc_eazy .*mean arc_easy\?"):
        question_set(tmp_path, "arc_eazy", CHOICE)


def test_a_name_that_lm_eval_lacks_is_refused() -> None:
    with pytest.raises(SbpError, match=r"benchmarks.tasks.hellaswagg: no benchmark .*did you mean hellaswag\?"):
        choose_questions(settings({"hellaswagg": {}}))


def test_data_that_cannot_be_downloaded_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SbpError, match=r"benchmarks.tasks.sciq: the data .* cannot be loaded .*as a `file`"):
        choose_questions(settings({"sciq": {}}))


PLAIN = {
    "choices": {**CHOICE, "query": "It is _ here.", "choices": list("abcd"), "subject": "anatomy"},
    "hellaswag": {**CHOICE, "activity": "Wading", "ctx_a": "A man wades.", "ctx_b": "he"},
    "winogrande": {**CHOICE, "query": "It is _ here."},
    "piqa": CHOICE,
    "triviaqa": {"question": "Who?", "answers": ["I"]},
    "webqs": {"question": "Who?", "answers": ["I"]},
    "lambada": {"context": "It is", "target": "so"},
    "text": {"text": "It is so."},
}
"""A line of each benchmark in the plain form."""


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("arc_easy", {**CHOICE, "gold": 2}, "its gold is of another form: each line must be .*query"),
        ("arc_easy", {**CHOICE, "gold": True}, "its gold"),
        ("arc_easy", {**CHOICE, "gold": -1}, "its gold"),
        ("arc_easy", {**CHOICE, "choices": ["one"]}, "its choices"),
        ("arc_easy", {**CHOICE, "query": " "}, "its query"),
        ("arc_easy", "{broken", "is not JSON"),
        ("arc_easy", "[1]", "is not an object"),
        ("mmlu", {**CHOICE, "subject": "anatomy"}, "has 2 choices and not 4"),
        ("mmlu", {**CHOICE, "choices": list("abcd")}, "has no subject"),
        ("hellaswag", CHOICE, "has no ctx_a"),
        ("sciq", CHOICE, "has 2 choices and not 4"),
        ("triviaqa", {"question": "Who?", "answers": []}, "its answers"),
        ("lambada", {"context": "The end of the", "target": "long day"}, "more than one word"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, name: str, row: Any, says: str) -> None:
    with pytest.raises(SbpError, match=rf"benchmarks.tasks.{name}.file=.*file.jsonl:2: .*{says}"):
        question_set(tmp_path, name, PLAIN.get(name, PLAIN["choices"]), row)


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("arc_easy", {"question": "What?", "answers": ["a"]}, "'choices' is undefined: each line must be .*arc_easy"),
        ("arc_easy", {"question": "Q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}, "not in list"),
        ("piqa", {"goal": "Q", "sol1": "a", "sol2": "b", "label": 2}, "a right answer that is none of its choices"),
        ("piqa", {"goal": "Q", "sol1": "a", "sol2": "", "label": 0}, "an empty text"),
        ("winogrande", CHOICE, "substring not found"),
        ("winogrande", {**CHOICE, "query": "It is _"}, "an empty text"),
        ("hellaswag", {"ctx_a": "A", "ctx_b": "b", "endings": ["c", "d"], "label": "0"}, "no activity_label"),
        ("mmlu", {**CHOICE, "choices": list("abcd"), "subject": "cooking"}, "lm-eval has no task mmlu_cooking"),
        ("webqs", {"query": "Who?"}, "question"),
        ("lambada", {"context": "The end of the"}, "'text' is undefined"),
        ("openbookqa", {"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}, "no question_stem"),
        ("text", {"query": "no text"}, "each line must be .*text"),
    ],
)
def test_a_question_that_lm_eval_cannot_ask_is_named(tmp_path: Path, name: str, row: Any, says: str) -> None:
    row = {**row, "id": "bad"}
    with pytest.raises(SbpError, match=rf"benchmarks.tasks.{name}.file=.*file.jsonl: question bad: .*{says}"):
        question_set(tmp_path, name, PLAIN.get(name, PLAIN["choices"]), row)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"benchmarks.tasks.piqa.file=.*nowhere.jsonl: there is no such file"):
        choose_questions(settings({"piqa": {"file": str(tmp_path / "nowhere.jsonl")}}))
    with pytest.raises(SbpError, match=r"is empty"):
        question_set(tmp_path, "piqa")


def test_too_few_questions_to_show_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"num_fewshot=1, and 0 questions are there beside those that are asked"):
        question_set(tmp_path, "webqs", {"question": "Who?", "answers": ["I"]})


def test_a_checkpoint_that_is_gone_is_named_before_any_is_question_set(tmp_path: Path) -> None:
    there, gone = (Artifact("lm", str(tmp_path / name)) for name in ("there", "gone"))
    there.write_json("model/config.json", {})
    require_checkpoints({"there": there})
    with pytest.raises(SbpError, match=r"gone/model holds no checkpoint of lm-2"):
        require_checkpoints({"lm-1": there, "lm-2": gone})


def test_a_benchmark_of_ours_needs_a_file() -> None:
    with pytest.raises(SbpError, match=r"lm-eval has no task called text, which is ours: give its `file`"):
        choose_questions(settings({"text": {}}))


def test_the_names_of_lm_evals_own_tasks_are_known() -> None:
    names = own_task_names()
    assert names["winogrande"].name == "winogrande"  # its file is called default.yaml
    assert names["mmlu_anatomy"] == names["mmlu"]  # a task, and its group
    assert "boolq" in names


# Choice


def test_the_same_questions_are_chosen_whatever_their_order(tmp_path: Path) -> None:
    rows = [{**CHOICE, "id": number} for number in range(50)]
    chosen = {row["key"] for row in question_set(tmp_path, "piqa", *rows, max_examples=10).rows or ()}
    assert len(chosen) == 10
    assert chosen == {row["key"] for row in question_set(tmp_path, "piqa", *rows[::-1], max_examples=10).rows or ()}
    assert chosen != {row["key"] for row in question_set(tmp_path, "piqa", *rows, max_examples=10, seed=1).rows or ()}
    assert chosen < {row["key"] for row in question_set(tmp_path, "piqa", *rows, max_examples=20).rows or ()}


def test_shown_questions_are_not_asked(tmp_path: Path) -> None:
    rows = [{"id": number, "question": f"Who is {number}?", "answers": ["I"]} for number in range(20)]
    found = question_set(tmp_path, "webqs", *rows, max_examples=15)
    assert {row["key"] for row in found.fewshot_rows}.isdisjoint(row["key"] for row in found.rows or ())
    assert len(found.fewshot_rows) == 5


def test_ids_that_come_twice_are_told_apart(tmp_path: Path) -> None:
    found = question_set(tmp_path, "piqa", CHOICE, CHOICE, {key: CHOICE[key] for key in ("query", "choices", "gold")})
    assert [row["key"] for row in found.rows or ()] == ["7", "7 (2)", "3"]


def test_wikitext_falls_into_its_articles(tmp_path: Path) -> None:
    path = tmp_path / "test.raw.gz"
    path.write_bytes(
        gzip.compress(
            b" \n = Bridge = \n \n It spans . \n \n = = Arch = = \n \n It bends . \n \n = Moon = \n It shines . \n"
        )
    )
    [found] = choose_questions(settings({"wikitext2": {"like": "text", "file": str(path)}}))
    assert [row["text"].split() for row in found.rows or ()] == [
        ["=", "Bridge", "=", "It", "spans", ".", "=", "=", "Arch", "=", "=", "It", "bends", "."],
        ["=", "Moon", "=", "It", "shines", "."],
    ]


# What was seen in training


def test_a_question_is_seen_when_a_run_of_its_words_was_trained_on(tmp_path: Path, in_process: WorkedOn) -> None:
    run = "one two three four five"
    found = question_set(
        tmp_path,
        "piqa",
        {**CHOICE, "id": "seen", "query": f"Does it say: {run}?"},
        {**CHOICE, "id": "in a choice", "choices": [run, "none"]},
        {**CHOICE, "id": "broken up", "query": "one two three, or four and five?"},
    )
    keys, hashes = question_ngrams(found.texts(), 5)
    corpus = Artifact("corpus", str(tmp_path / "corpus"))
    corpus.write_table("train/a.parquet", pa.table({"text": ["nothing", f"It said {run.upper()} and so on."]}))
    found = look_for(hashes, [corpus], 5)
    assert {keys[i] for i in np.flatnonzero(np.isin(hashes, found.hash_H))} == {"seen", "in a choice"}
    assert (found.num_documents, found.num_sharing) == (2, 1)


# Numbers

ANSWERS = {  # of four questions: right or not, nats of the right answer, its bytes
    "repetition": {0: [(1, 2.0, 4), (0, 3.0, 2), (0, 4.0, 4), (1, 9.0, 9)]},
    "sbp": {0: [(1, 1.0, 4), (1, 3.0, 2), (0, 3.0, 4), (0, 0.0, 9)]},
}


def row_of(tmp_path: Path, seen: list[str] | None) -> dict[str, Any]:
    found = question_set(tmp_path, "piqa", *({**CHOICE, "id": number} for number in range(4)))
    answers = {
        arm: {
            seed: {
                str(i): {"acc": acc, "acc_norm": acc, "nll": nll, "bytes": size}
                for i, (acc, nll, size) in enumerate(questions)
            }
            for seed, questions in seeds.items()
        }
        for arm, seeds in ANSWERS.items()
    }
    return benchmark_row(found, answers, seen=seen, num_truncated=0, seed=0)


def test_values_and_gains_on_the_questions_that_are_left(tmp_path: Path) -> None:
    row = row_of(tmp_path, seen=["3"])
    accuracy, _, likelihood = row["measures"]
    assert (row["questions"], row["left_out"]) == (3, 1)
    assert accuracy["arms"]["repetition"]["mean"] == pytest.approx(1 / 3)
    assert accuracy["arms"]["sbp"]["over_questions"]["value"] == pytest.approx(1 / 3)
    assert likelihood["arms"]["repetition"]["mean"] == pytest.approx(9 / 10)
    assert likelihood["arms"]["sbp"]["mean"] == pytest.approx(7 / 10)
    gain = likelihood["arms"]["sbp"]["over_questions"]
    assert gain["value"] == pytest.approx(2 / 10)  # above zero: the answers are likelier
    assert gain["low"] == pytest.approx(0)  # drawn three times the second question, which did not change
    assert likelihood["arms"]["sbp"]["gain"] == pytest.approx(2 / 10)
    assert likelihood["arms"]["repetition"]["over_questions"] is None


def test_no_question_left_is_not_measured(tmp_path: Path) -> None:
    row = row_of(tmp_path, seen=["0", "1", "2", "3"])
    assert (row["questions"], row["measures"]) == (0, [])
    assert NOT_MEASURED in page(rows=[row], judge=None)


def test_a_perplexity_is_shown_and_its_gain_is_in_nats(tmp_path: Path) -> None:
    found = question_set(tmp_path, "lambada", {"id": 0, "context": "It is", "target": "so"})
    answers = {arm: {0: {"0": {"acc": 0, "nll": nll, "bytes": 3}}} for arm, nll in (("repetition", 2), ("sbp", 1.5))}
    row = benchmark_row(found, answers, seen=None, num_truncated=0, seed=0)
    perplexity = row["measures"][1]["arms"]
    assert perplexity["sbp"]["shown"] == pytest.approx(math.exp(1.5))
    assert perplexity["sbp"]["over_questions"]["value"] == pytest.approx(0.5)


# The page


def page(**given: Any) -> str:
    from sbp_ray.report import wording

    return environment().get_template("benchmarks.html.j2").render(wording=wording, **given)


def test_the_page_says_what_is_not_measured() -> None:
    shown = page(rows=None, judge=None)
    assert shown.count(NOT_MEASURED.capitalize()) == 2
    assert "Nothing else stands in for it" in shown


def test_the_page_shows_every_arm_with_its_gain(tmp_path: Path) -> None:
    shown = page(rows=[row_of(tmp_path, seen=["3"])], judge=None)
    assert "33.3 %" in shown
    assert "+0.200" in shown
    assert "1 left out" in shown
