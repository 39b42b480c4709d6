"""Measures against a known truth, counted by hand in a world of three entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.bios.statements import StatementReader
from sbp_ray.bios.truth import Fact
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.facts.known_text import KnownText, read_known_text, stand_together
from sbp_ray.evaluation.facts.measured_facts import measure_facts
from sbp_ray.evaluation.facts.recall_prompts import HELD_OUT, STOP, UNSEEN, VALUE, choose_prompts, prompt_example
from sbp_ray.evaluation.facts.text_facts import count_text, share_rows
from sbp_ray.evaluation.facts.token_classes import CLASSES, classify_tokens, token_spans
from sbp_ray.evaluation.study import Study, Training
from sbp_ray.model import build_model
from sbp_ray.nodes import Node
from sbp_ray.report.fact_tables import fact_tables
from sbp_ray.schema import DOCUMENT, SYNTHETIC
from sbp_ray.scoring import score_tokens, sum_nll
from sbp_ray.stage_table import STAGES
from sbp_ray.text.pair_format import Example, document_example
from sbp_ray.text.tokenizer import SpecialIds, encode_texts, special_ids, train_tokenizer
from tests.small_world import small_world

TRUTH = small_world()
READER = StatementReader(TRUTH)
SPECIAL = SpecialIds(0, 1, 2)
TEXTS = [
    "Ann Lee was born in Oldham. Ann Lee is a baker.",
    "Oldham is where Ann Lee was born. Ann Lee knew Gull.",
    "Ann Lee was born in Oldham. Ann Lee is a miner. The ship Gull sails from Hull.",
    "Ann Lee was born in Oldham. Tom Fox is a miner.",
]
BORN, TRADE, PORT = Fact("Ann Lee", "birthplace"), Fact("Ann Lee", "trade"), Fact("Gull", "port")
TOM_TRADE = Fact("Tom Fox", "trade")


@pytest.fixture(scope="module")
def known() -> KnownText:
    found = KnownText()
    for text in TEXTS:
        found.add(READER.read(text), READER)
    return found


def test_facts_are_counted_in_the_training_text(known: KnownText) -> None:
    assert known.counts == {BORN: 4, TRADE: 1, PORT: 1, TOM_TRADE: 1}  # "Ann Lee is a miner" is false
    assert [known.times(fact) for fact in (BORN, TRADE, Fact("Tom Fox", "birthplace"))] == [3, 1, 0]
    by_fact = known.documents_by_fact
    assert stand_together([BORN, TRADE], by_fact) and not stand_together([TRADE, PORT], by_fact)
    assert not stand_together([BORN, Fact("Tom Fox", "birthplace")], by_fact)


def test_the_train_split_is_read_shard_by_shard(new_artifact) -> None:
    corpus = new_artifact("corpus")
    for shard in (0, 1):
        corpus.write_table(f"train/part-{shard:05d}.parquet", pa.table({"text": TEXTS[shard::2]}))
        corpus.write_table(f"validation/part-{shard:05d}.parquet", pa.table({"text": TEXTS[:1]}))
    found = read_known_text(corpus, TRUTH)
    assert found.counts == {BORN: 4, TRADE: 1, PORT: 1, TOM_TRADE: 1} and found.num_documents == 4


def test_a_corpus_of_another_world_is_refused_in_one_line(new_artifact) -> None:
    corpus = new_artifact("corpus")
    for split in ("train", "validation"):
        corpus.write_table(f"{split}/part-00000.parquet", pa.table({"text": ["The rain in Spain."]}))
    with pytest.raises(SbpError, match=r"eval\.truth: no document of .* states a fact of this world: give the truth"):
        read_known_text(corpus, TRUTH)


def test_each_token_is_of_what_it_says(known: KnownText) -> None:
    text = "Tom Fox was born in York. Ann Lee is a baker. Oldham is where Ann Lee was born. Ann Lee knew Gull."
    words = [(start, start + len(word)) for word, start in _words_at(text)]
    classes = [CLASSES[number] for number in classify_tokens(text, words, READER.read(text), known)]
    assert classes == [
        *["name"] * 2, *["rest"] * 3, "value_0",
        *["name"] * 2, *["rest"] * 2, "value_1",
        "value_3", *["rest"] * 2, *["name"] * 2, *["rest"] * 2,
        *["name"] * 2, "rest", "name",
    ]  # fmt: skip


def _words_at(text: str) -> list[tuple[str, int]]:
    """Words with the space before each, as byte-level tokens have it."""
    found, start = [], 0
    for word in text.split(" "):
        lead = min(1, start)
        found.append((" " * lead + word, start - lead))
        start += len(word) + 1
    return found


def test_spans_of_tokens_go_with_their_ids() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    spans = token_spans(tokenizer, TEXTS[0])
    [ids] = encode_texts(tokenizer, [TEXTS[0]])
    assert len(spans) == len(ids)
    assert [tokenizer.decode([one]) for one in ids] == [TEXTS[0][start:end] for start, end in spans]


def test_facts_are_asked_for_in_words_never_seen_with_them(known: KnownText) -> None:
    prompts = choose_prompts(TRUTH, known, limit=9, seed=0)
    assert {one.fact: one.sentence for one in prompts[HELD_OUT]} == {
        BORN: "Ann Lee is a native of Oldham.",
        TRADE: "Ann Lee worked as a baker.",
        PORT: "The port of Gull is Hull.",
        Fact("Tom Fox", "birthplace"): "Tom Fox is a native of York.",
        TOM_TRADE: "Tom Fox worked as a miner.",
    }
    # Every other wording that ends in the value was read with Ann Lee, with the Gull and with Tom Fox's trade.
    assert [one.sentence for one in prompts[UNSEEN]] == ["Tom Fox was born in York."]
    assert all(one.sentence[slice(*one.value_at)] == TRUTH.value(one.fact) for one in prompts[HELD_OUT])


def test_no_more_facts_are_asked_for_than_the_limit_of_each_count(known: KnownText) -> None:
    prompts = choose_prompts(TRUTH, known, limit=1, seed=0)
    assert sorted(known.times(one.fact) for one in prompts[HELD_OUT]) == [0, 1, 3]


def test_a_prompt_is_supervised_on_the_value_and_its_end(known: KnownText) -> None:
    tokenizer = train_tokenizer(["a b c"], 259)  # bytes: one token a character
    prompt = next(one for one in choose_prompts(TRUTH, known, limit=9, seed=0)[HELD_OUT] if one.fact == PORT)
    example, classes = prompt_example(prompt, tokenizer, special_ids(tokenizer))
    supervised = example.input_ids[example.first_supervised :].tolist()
    assert tokenizer.decode(supervised) == "Hull."
    assert classes.tolist() == [*[VALUE] * 4, STOP]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A copy of the first training document, and so of d1.
        (TEXTS[0], {"true": 2, "copies_of_d1": 1, "copies": 1, "combinations": 1, "irrelevant": 0}),
        # Two facts that stand in one training document, one of them in new words.
        (
            "Ann Lee is a native of Oldham. Ann Lee is a baker.",
            {"true": 2, "reworded": 1, "combinations": 1, "novel_combinations": 0, "copies": 0},
        ),
        # A fact that is nowhere stated makes the combination novel.
        (
            "Tom Fox is a miner. Tom Fox was born in York.",
            {"true": 2, "not_stated": 1, "reworded": 1, "novel_combinations": 1, "irrelevant": 1},
        ),
        # Each statement counts once: false, of nobody, repeated; and a sentence that says nothing.
        (
            "Ann Lee is a miner. Bob Ray is a baker. Ann Lee is a baker. It rained.",
            {"statements": 3, "true": 1, "false": 1, "nobody": 1, "repeated": 1, "unknown": 1, "combinations": 0},
        ),
        ("It rained.", {"sentences": 1, "statements": 0, "irrelevant": 1, "copies": 0, "copies_of_d1": 0}),
        ("", {"sentences": 0, "irrelevant": 1, "copies": 0, "copies_of_d1": 0}),
    ],
)  # fmt: skip
def test_a_synthetic_document_is_counted(known: KnownText, text: str, expected: dict[str, int]) -> None:
    found = count_text(READER.read(text), READER.read(TEXTS[0]), known, READER)._asdict()
    assert {name: found[name] for name in expected} == expected


def test_shares_are_over_statements_and_documents_of_all(known: KnownText) -> None:
    texts = [TEXTS[0], "Ann Lee is a miner. It rained.", "It rained."] * 10
    counts = [count_text(READER.read(text), READER.read(TEXTS[0]), known, READER) for text in texts]
    found = share_rows(counts, [f"entity {number}" for number in range(30)], has_d1=True, seed=0)
    assert (found["documents"], found["sentences"], found["statements"]) == (30, 50, 30)
    shares = {name: share["value"] for name, share in found["shares"].items()}
    assert shares == pytest.approx(
        {
            "true": 20 / 30, "false": 10 / 30, "nobody": 0, "repeated": 0, "reworded": 0, "not_stated": 0,
            "unknown_sentences": 20 / 50, "irrelevant": 10 / 30, "copies_of_d1": 10 / 30, "copies": 10 / 30,
            "novel_combinations": 0,
        }
    )  # fmt: skip
    units = {name: share["units"] for name, share in found["shares"].items()}  # groups that have anything to count
    assert (units["irrelevant"], units["unknown_sentences"], units["true"], units["reworded"]) == (30, 30, 20, 10)
    real = share_rows(counts, ["one"] * 30, has_d1=False, seed=0)["shares"]
    assert {"irrelevant", "copies_of_d1"}.isdisjoint(real) and np.isclose(real["copies"]["value"], 1 / 3)


# With models


def _settings(run_dir: Path, truth: Path) -> Config:
    training = {"seq_len": 64, "batch_rows": 1, "peak_lr": 1e-3, "dtype": "float32"}
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "ffn_size": 32}
    return Config.model_validate(
        {
            "run_dir": str(run_dir),
            "ingest": {"input": ["unused"], "num_shards": 1},
            "model": shape,
            "pretrain": {**training, "total_tokens": 64},
            "tune": training,
            "engine": {"max_model_len": 4096},
            "synthesize": {"max_tokens": 64},
            "eval": {"truth": str(truth)},
        }
    )


HELD_OUT_TEXT = "Tom Fox was born in York. Ann Lee knew Gull. Ann Lee is a native of Oldham. The end."
WRITTEN = ["Ann Lee is a baker. It rained.", "The port of Gull is Hull."]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A base LM and a joint LM, both untrained, on a corpus of four documents; two synthetic documents."""
    (tmp_path / "truth.json").write_text(TRUTH.model_dump_json())
    config = _settings(tmp_path, tmp_path / "truth.json")
    tokenizer = train_tokenizer(["a b c"], 259)
    nodes: dict[str, Node] = {}
    for stage in STAGES:
        inputs = {noun: nodes[noun] for noun in stage.reads}
        nodes[stage.writes] = Node(stage, config, {}, f"{stage.writes:0>16}", inputs)
        nodes[stage.writes].artifact.write_json(STARTED, {"fingerprint": f"{stage.writes:0>16}"})
    corpus = nodes["corpus"].artifact
    tokenizer.save_pretrained(corpus.path("tokenizer"))
    ids = {text: number.to_bytes(16, "big") for number, text in enumerate([*TEXTS, HELD_OUT_TEXT, *WRITTEN])}
    for split, texts in {"train": TEXTS, "validation": [HELD_OUT_TEXT]}.items():
        rows = [
            {"doc_id": ids[text], "group": "Ann Lee", "text": text, "input_ids": encode_texts(tokenizer, [text])[0]}
            for text in texts
        ]
        corpus.write_table(f"{split}/part-00000.parquet", pa.Table.from_pylist(rows, DOCUMENT))
    written = [{"doc_id": ids[text], "d1_id": ids[TEXTS[0]], "text": text, "input_ids": [1]} for text in WRITTEN]
    nodes["synthetic"].artifact.write_table("part-00000.parquet", pa.Table.from_pylist(written, SYNTHETIC))
    for seed, noun in enumerate(("base_lm", "lm")):
        build_model(config.model, 259, special_ids(tokenizer), seed).save_pretrained(nodes[noun].artifact.path("model"))
        nodes[noun].artifact.write_json(MANIFEST, {"stats": {}})
    arms = {"repetition": nodes["base_lm"], "sbp": nodes["lm"]}
    trainings = [Training(name, name, name, "", 0, None, 1, 64, model) for name, model in arms.items()]
    return Study(config, trainings, tuple(nodes.values()))


def test_facts_of_a_study(study: Study, new_artifact) -> None:
    store = new_artifact("scores")
    found = measure_facts(study, store)
    assert found is not None
    assert (found["entities"], found["facts"]) == (3, [1, 3, 0, 1])
    # A token a character: of York; of Oldham; of four names, whose spaces count as the rest; and <eos>.
    sizes = {name: size for name, size in found["sizes"].items() if "wording" not in name}
    assert sizes == {
        "value_0_nats_per_token": len("York"), "value_0_nats_per_value": 1,
        "value_3_nats_per_token": len("Oldham"), "value_3_nats_per_value": 1,
        "name_nats_per_token": len("TomFoxAnnLeeGullAnnLee"),
        "rest_nats_per_token": len(HELD_OUT_TEXT) + 1 - len("YorkOldham" + "TomFoxAnnLeeGullAnnLee"),
    }  # fmt: skip
    for arm in found["arms"]:
        parts = {name: arm["measures"][name]["mean"] * size for name, size in sizes.items() if "token" in name}
        model = next(one.model.artifact for one in study.trainings if one.name == arm["name"])
        assert sum(parts.values()) == pytest.approx(_nll_of(model, HELD_OUT_TEXT), rel=1e-5)
        assert arm["measures"]["held_out_wording_1_missed"]["mean"] == 1  # nothing was learned
    synthetic, real = found["texts"]
    assert (synthetic["name"], synthetic["documents"], synthetic["statements"]) == ("sbp", 2, 2)
    shares = {name: share["value"] for name, share in synthetic["shares"].items()}
    assert (shares["true"], shares["irrelevant"], shares["unknown_sentences"], shares["reworded"]) == (
        1,
        0.5,
        1 / 3,
        0.5,
    )
    assert (real["name"], real["shares"]["true"]["value"]) == ("real_held_out", 1)
    assert measure_facts(study, store) == found  # from the store
    losses, recalled, recalled_anew, stated = fact_tables(found)
    assert losses.rows[0][1:3] == (
        "value of a fact stated never (1)",
        "value of a fact stated three times and more (1)",
    )
    assert [row[0] for row in losses.rows[1:]] == ["repetition", "sbp"]
    assert recalled.rows[0] == ("arm", "stated never (1)") and len(recalled_anew.rows[0]) == 4
    assert "states 1 never, 3 once, 0 twice, 1 three times and more" in recalled.note
    assert ("statements that are true", "100.0 %", "100.0 %") in stated.rows


def _nll_of(trained: Artifact, text: str) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained.path("../1_corpus/tokenizer"))
    model = AutoModelForCausalLM.from_pretrained(trained.path("model"), dtype=torch.float32)
    # Windows of 62 tokens, as the model is trained on rows of 64.
    ids, special = encode_texts(tokenizer, [text])[0], special_ids(tokenizer)
    total = 0.0
    for start in range(0, len(ids), 62):
        window = [special.bos, *ids[start : start + 62], *([special.eos] if start + 62 >= len(ids) else [])]
        with torch.no_grad():
            logits_TV = model(torch.tensor([window])).logits[0, :-1].double()
        total -= float(logits_TV.log_softmax(-1).gather(1, torch.tensor(window[1:])[:, None]).sum())
    return total


def test_without_a_truth_nothing_is_measured(study: Study, new_artifact) -> None:
    settings = study.settings.model_copy(update={"eval": study.settings.eval.model_copy(update={"truth": None})})
    assert measure_facts(Study(settings, study.trainings, study.nodes), new_artifact("scores")) is None
    assert fact_tables(None) == []


def test_tokens_are_the_likeliest_exactly_where_greedy_decoding_writes_them(study: Study) -> None:
    from transformers import AutoModelForCausalLM

    [trained] = next(iter(study.models.values()))
    model: Any = AutoModelForCausalLM.from_pretrained(trained.artifact.path("model"))
    prompt = [0, 70, 80]
    written = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)[0].tolist()
    other = [*written[:-1], (written[-1] + 1) % 259]
    examples = [*(Example(np.array(ids, np.int32), 3) for ids in (written, other)), document_example([5] * 9, SPECIAL)]
    greedy, changed, document = score_tokens(model, examples, batch_tokens=64)
    assert greedy.is_top_S.tolist() == [True] * 5
    assert changed.is_top_S.tolist() == [True] * 4 + [False]
    assert len(document.nll_S) == 10
    assert sum_nll(model, [Example(np.array(written, np.int32), 3)], batch_tokens=64)[0] == greedy.nll_S.sum()
