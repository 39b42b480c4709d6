"""Measures against a known truth, counted by hand in a world of three entities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sbp_ray.bios.statements import StatementReader
from sbp_ray.bios.truth import Fact
from sbp_ray.errors import SbpError
from sbp_ray.evaluation.facts.known_text import KnownText, read_known_text
from sbp_ray.evaluation.facts.recall import HELD_OUT, STOP, UNSEEN, VALUE, choose_prompts, prompt_example
from sbp_ray.evaluation.facts.text_facts import count_text, share_rows
from sbp_ray.evaluation.facts.token_classes import CLASSES, classify_tokens, token_spans
from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer
from tests.small_world import small_world

TRUTH = small_world()
READER = StatementReader(TRUTH)
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
    assert known.states_together([BORN, TRADE]) and not known.states_together([TRADE, PORT])
    assert not known.states_together([BORN, Fact("Tom Fox", "birthplace")])


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
    assert {share["units"] for share in found["shares"].values()} == {30}
    real = share_rows(counts, ["one"] * 30, has_d1=False, seed=0)["shares"]
    assert {"irrelevant", "copies_of_d1"}.isdisjoint(real) and np.isclose(real["copies"]["value"], 1 / 3)
