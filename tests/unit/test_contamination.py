"""Which documents share a run of words with an evaluation set."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sbp_ray.config import DecontaminateConfig
from sbp_ray.errors import SbpError
from sbp_ray.text import contamination
from sbp_ray.text.contamination import (
    EvaluationNgrams,
    EvaluationSet,
    describe_contamination,
    ngram_hashes,
    read_evaluation_sets,
)

SHARED = Path(__file__).parents[3] / "shared/data"
QUESTION = "Which gas do plants take from the air while they make sugar out of sunlight"  # 15 words


def write_set(path: Path, rows: Sequence[Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def sets_of(*paths: Path, ngram_words: int = 13) -> EvaluationNgrams:
    cfg = DecontaminateConfig(evaluation_sets=tuple(map(str, paths)), ngram_words=ngram_words)
    return read_evaluation_sets(cfg)


def test_a_shared_run_of_thirteen_words_is_found_and_one_of_twelve_is_not(tmp_path: Path) -> None:
    sets = sets_of(write_set(tmp_path / "arc.jsonl", [{"query": QUESTION}]))
    in_both = QUESTION.split()
    texts = [
        f"He asked: {' '.join(in_both[1:14])}, and waited.",
        f"He asked: {' '.join(in_both[1:13])}, and waited.",
        QUESTION,
    ]
    assert sets.find(texts) == {0: ("arc",), 2: ("arc",)}
    assert sets.num_ngrams == 3


def test_case_punctuation_white_space_and_compatibility_forms_leave_no_trace(tmp_path: Path) -> None:
    sets = sets_of(write_set(tmp_path / "arc.jsonl", [{"query": QUESTION}]))
    disguised = QUESTION.upper().replace(" ", " _,\n— ").replace("SUGAR", "ＳＵＧＡＲ")
    assert sets.find([disguised]) == {0: ("arc",)}
    assert sets.find([QUESTION.replace("gas", "gases").replace("sugar", "sugars")]) == {}


def test_words_of_two_documents_make_no_run(tmp_path: Path) -> None:
    sets = sets_of(write_set(tmp_path / "arc.jsonl", [{"query": QUESTION}]))
    middle = len(QUESTION) // 2
    assert sets.find([QUESTION[:middle], QUESTION[middle:]]) == {}


def test_every_string_of_a_row_counts_but_ids(tmp_path: Path) -> None:
    long = [" ".join(f"{name}{n}" for n in range(13)) for name in ("a", "b", "c", "d", "e")]
    row = {"id": long[0], "doc_id": long[1], "query": long[2], "choices": ["short", {"text": long[3]}], "gold": 2}
    sets = sets_of(write_set(tmp_path / "x.jsonl", [row, long[4]]))
    assert sorted(sets.find(long)) == [2, 3, 4]


def test_items_too_short_to_check_are_counted(tmp_path: Path) -> None:
    rows = [{"query": "Is it?", "choices": [QUESTION]}, {"query": "one two three"}, {"gold": 1}, {"query": ""}]
    sets = sets_of(write_set(tmp_path / "x.jsonl", rows))
    assert sets.sets == (EvaluationSet("x", 4, 3),)


def test_a_document_names_each_set_that_it_shares_with_and_counts_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    sets = sets_of(
        write_set(tmp_path / "a.jsonl.gz", [{"query": QUESTION}, {"query": QUESTION}]),
        write_set(tmp_path / "b.jsonl", [{"question": f"{QUESTION} or not"}]),
        write_set(tmp_path / "other/b.jsonl", [{"question": "too short"}]),
    )
    assert sets.find(["nothing", QUESTION]) == {1: ("a", "b")}
    assert sets.num_ngrams == 3 + 5  # kept once for each set
    counted = sets.count_hits(1, {"a": 1, "b": 1})
    assert counted == {
        "ngram_words": 13,
        "ngrams": 8,
        "documents": 1,
        "sets": {
            "a": {"items": 2, "too_short": 0, "documents": 1},
            "b": {"items": 2, "too_short": 1, "documents": 1},
        },
    }
    assert describe_contamination(counted) == (
        "1 documents share 13 words in a row with an evaluation set and are dropped (a 1, b 1) | "
        "4 items in 2 sets, 1 too short to check"
    )


def test_without_sets_nothing_is_contaminated() -> None:
    sets = read_evaluation_sets(DecontaminateConfig())
    assert sets.find([QUESTION, ""]) == {}
    assert sets.count_hits(0, {}) is None


def test_scripts_without_spaces_are_taken_character_by_character(tmp_path: Path) -> None:
    sentence = "植物在阳光下制造糖分时从空气中吸收哪一种气体"
    sets = sets_of(write_set(tmp_path / "x.jsonl", [{"query": sentence}]))
    assert sets.num_ngrams == len(sentence) - 12
    assert sets.find([f"他问{sentence[3:17]}吗", sentence[:12]]) == {0: ("x",)}


def test_hashes_are_the_same_in_every_process_and_do_not_depend_on_neighbours() -> None:
    hashes_G, text_G = ngram_hashes(["", "Ein Wort.", "a b c", "zwei, DREI"], 2)
    assert text_G.tolist() == [1, 2, 2, 3]
    assert hashes_G.tolist()[0] == ngram_hashes(["ein_wort"], 2)[0].tolist()[0]
    assert hashes_G.tolist()[3] == ngram_hashes(["Zwei drei"], 2)[0].tolist()[0]
    assert len({*hashes_G.tolist()}) == 4
    assert [hex(number) for number in hashes_G[:1].tolist()] == ["0xf6b24976e477567b"]


def test_chunks_of_rows_and_of_texts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path / "x.jsonl", [{"query": f"{n % 40} {QUESTION} {n % 30}"} for n in range(100)])
    ending = " ".join(QUESTION.split()[2:])
    texts = [f"{ending} {n}" for n in range(40)] + ["other words"] * 10
    whole = sets_of(path, ngram_words=14)
    monkeypatch.setattr(contamination, "_CHUNK_CHARS", 200)
    parts = sets_of(path, ngram_words=14)
    assert whole.num_ngrams == parts.num_ngrams == 40 + 2 + 30
    assert whole.find(texts) == parts.find(texts) == dict.fromkeys(range(30), ("x",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, r"evaluation_sets: .*none.jsonl: there is no such file"),
        ("x.jsonl", b'{"query": "a"}\n\n{"query": \n', r"evaluation_sets: .*x.jsonl:3: is not JSON"),
        ("x.jsonl", b"\xff\xff\n", r"x.jsonl:1: is not JSON"),
        ("x.jsonl", b"\xff\xfe{\0", r"x.jsonl: is in UTF-16"),
        ("x.txt", b"words", r"evaluation_sets: .*x.txt: is no file of JSON lines"),
        ("x.jsonl.gz", gzip.compress(b'{"a": "b"}\n' * 999, mtime=0)[:-9], r"x.jsonl.gz: cannot be read"),
    ],
)
def test_a_set_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SbpError, match=message):
        sets_of(tmp_path / name)


def test_sets_beyond_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_set(tmp_path / "x.jsonl", [{"query": QUESTION}] * 9)
    monkeypatch.setattr(contamination, "_MAX_NGRAMS", 3)
    assert sets_of(path).num_ngrams == 3
    monkeypatch.setattr(contamination, "_MAX_NGRAMS", 2)
    with pytest.raises(SbpError, match="more than 2 n-grams"):
        sets_of(path)


@pytest.mark.skipif(not (SHARED / "evals").exists(), reason="the evaluation sets are not here")
def test_on_real_sets_and_documents_it_finds_what_a_search_by_hand_finds() -> None:
    paths = [SHARED / f"evals/{name}.jsonl.gz" for name in ("arc_easy_test", "webquestions_test", "sciq_validation")]
    texts = [row["text"] for row in rows_of(SHARED / "wiki-intro/docs.jsonl.gz")[:20_000]]
    asked = {run for path in paths for row in rows_of(path) for run in runs_of_row(row)}
    by_hand = [number for number, text in enumerate(texts) if not asked.isdisjoint(runs_of(text))]
    assert len(by_hand) > 50
    assert sorted(sets_of(*paths, ngram_words=6).find(texts)) == by_hand


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def runs_of(text: str) -> set[tuple[str, ...]]:
    parts = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
    return {tuple(parts[n : n + 6]) for n in range(len(parts) - 5)}


def runs_of_row(row: dict[str, Any]) -> set[tuple[str, ...]]:
    texts = [row.get(name, "") for name in ("query", "question", "context")]
    texts += [*row.get("choices", []), *row.get("answers", [])]
    return {run for text in texts for run in runs_of(text)}
