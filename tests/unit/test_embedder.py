from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_embedder import make_bert, make_qwen3
from transformers import AutoModel

from sbp_ray import embedder
from sbp_ray.config import EmbedConfig, ForwardResources
from sbp_ray.embedder import joined, load_embedder
from sbp_ray.errors import SbpError
from sbp_ray.text.packing import plan_batches
from sbp_ray.text.tokenizer import encode_texts, load_tokenizer

TEXTS = ["A cat sat on a mat.", "word " * 300, "Kittens sleep a lot.", "Interest rates rose."]
OF_LIKE_LENGTH = ["Interest rates rose again and again."[:length] for length in range(16, 36)]


def planned(num_tokens: list[int], batch_tokens: int) -> list[list[int]]:
    return [batch.tolist() for batch in plan_batches(np.array(num_tokens, np.int64), batch_tokens)]


def test_a_batch_closes_at_its_budget() -> None:
    assert planned([10] * 5, batch_tokens=20) == [[0, 1], [2, 3], [4]]
    assert planned([10] * 2, batch_tokens=19) == [[0], [1]]


def test_a_batch_closes_before_its_padding_passes_five_percent() -> None:
    assert planned([90, 100], batch_tokens=1000) == [[1, 0]]  # 10 of 200: just 5 %
    assert planned([89, 100], batch_tokens=1000) == [[1], [0]]
    assert planned([100, 1, 100, 1], batch_tokens=1000) == [[0, 2], [1, 3]]


def test_a_text_longer_than_the_budget_goes_alone_and_first() -> None:
    assert planned([5, 500, 5], batch_tokens=100) == [[1], [0, 2]]


def test_the_states_of_a_causal_lm_are_averaged_after_bos_in_any_batch(tiny_model_dir: Path) -> None:
    cfg = EmbedConfig(
        model=str(tiny_model_dir),
        pooling="mean_of_states",
        max_tokens=64,
        dtype="float32",
        resources=ForwardResources(batch_tokens=130),
    )
    texts = ["A cat sat.", "Kittens sleep a lot.", "Interest rates rose again and again."]
    vectors_ND = load_embedder(cfg)(texts)
    decoder = AutoModel.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(tiny_model_dir)
    for vector_D, ids in zip(vectors_ND, encode_texts(tokenizer, texts), strict=True):
        with torch.no_grad():
            states_TD = decoder(torch.tensor([[tokenizer.bos_token_id, *ids]])).last_hidden_state[0, 1:]
        mean_D = states_TD.mean(dim=0).numpy()
        assert vector_D == pytest.approx(mean_D / np.linalg.norm(mean_D), abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "mean_of_states"])
def test_texts_one_behind_the_other_have_the_vectors_of_padded_ones_and_no_padding(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make = {
        "bert": lambda: make_bert(tmp_path, spread=0.5),
        "qwen3": lambda: make_qwen3(tmp_path),
        "mean_of_states": lambda: str(tiny_model_dir),
    }
    cfg = EmbedConfig(
        model=make[kind](),
        pooling="mean_of_states" if kind == "mean_of_states" else "sentence",
        max_tokens=64,
        dtype="float32",
        resources=ForwardResources(batch_tokens=1000),
    )
    texts = OF_LIKE_LENGTH + TEXTS
    padded = load_embedder(cfg)
    expected = padded.start(padded.tokenize(texts)).result()
    monkeypatch.setattr(embedder, "_has_kernel", lambda _: True)
    packed = load_embedder(cfg)
    found = packed.start(packed.tokenize(texts)).result()
    assert (found.vectors_ND * expected.vectors_ND).sum(axis=1).min() > 1 - 1e-5
    assert expected.padding_tokens > 0
    assert found.padding_tokens == 0


def test_an_architecture_that_is_not_known_to_take_them_so_is_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "_has_kernel", lambda _: True)
    monkeypatch.setattr(embedder, "_PACKABLE", ("qwen3",))
    loaded = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64, dtype="float32"))
    assert loaded.start(loaded.tokenize(OF_LIKE_LENGTH)).result().padding_tokens > 0


def test_a_document_is_not_cut_beyond_what_the_causal_lm_reads(tiny_model_dir: Path) -> None:
    with pytest.raises(SbpError, match=r"embed.max_tokens \(257\) is more than .* reads \(256\)"):
        load_embedder(EmbedConfig(model=str(tiny_model_dir), pooling="mean_of_states", max_tokens=257))


def test_a_folder_without_a_causal_lm_is_named(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match="no causal LM can be loaded from there"):
        load_embedder(EmbedConfig(model=str(tmp_path), pooling="mean_of_states"))


def test_nothing_makes_no_batch() -> None:
    assert planned([], batch_tokens=100) == []


def test_every_text_is_in_one_batch_and_no_batch_has_more_padding() -> None:
    num_tokens_N = np.random.default_rng(0).lognormal(4, 1, 2000).astype(np.int64) + 1
    batches = plan_batches(num_tokens_N, 4096)
    assert sorted(np.concatenate(batches).tolist()) == list(range(2000))
    for batch in batches:
        computed = len(batch) * num_tokens_N[batch].max()
        assert computed <= 4096 or len(batch) == 1
        assert computed - num_tokens_N[batch].sum() <= 0.05 * computed


def test_the_packaged_model_gives_unit_vectors_in_the_order_of_the_texts() -> None:
    packaged = load_embedder(EmbedConfig(max_tokens=128, dtype="float32", resources=ForwardResources(batch_tokens=16)))
    assert packaged.dim == 384
    texts = packaged.tokenize(TEXTS)
    assert texts.num_tokens_N.tolist() == [9, 128, 8, 6]  # with the two marks of the model
    assert texts.truncated_N.tolist() == [False, True, False, False]
    vectors_ND = packaged.start(texts).result().vectors_ND
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-6)
    cosine = vectors_ND @ vectors_ND.T
    assert cosine[0, 2] > cosine[0, 3] + 0.1  # cats are nearer to kittens than to interest rates
    alone = np.concatenate([packaged([text]) for text in TEXTS])
    np.testing.assert_allclose(vectors_ND, alone, atol=1e-5)
    cut = packaged(["word " * 126])  # what is left of the long text
    np.testing.assert_allclose(cut[0], vectors_ND[1], atol=1e-5)


def test_a_text_of_just_the_limit_is_not_cut() -> None:
    packaged = load_embedder(EmbedConfig(max_tokens=10))
    texts = packaged.tokenize(["word " * 8, "word " * 9])
    assert texts.num_tokens_N.tolist() == [10, 10]
    assert texts.truncated_N.tolist() == [False, True]


def test_padding_is_counted(tmp_path: Path) -> None:
    tiny = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))
    texts = tiny.tokenize(["!" * 20, "!" * 20, "!" * 19, "!"])  # a batch of 3 and one of 1
    assert texts.num_tokens_N.tolist() == [20, 20, 19, 1]
    assert tiny.start(texts).result().padding_tokens == 1


def test_no_texts_make_no_vectors(tmp_path: Path) -> None:
    assert load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))([]).shape == (0, 16)


def test_joined_texts_are_embedded_as_if_they_had_come_together(tmp_path: Path) -> None:
    tiny = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))
    whole = tiny.tokenize(TEXTS)
    parts = joined([tiny.tokenize(TEXTS[:1]), tiny.tokenize(TEXTS[1:])])
    assert parts.truncated_N.tolist() == whole.truncated_N.tolist() == [False, True, False, False]
    np.testing.assert_array_equal(tiny.start(parts).result().vectors_ND, tiny.start(whole).result().vectors_ND)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("make", [make_bert, make_qwen3])
def test_prompts_padding_and_pooling_are_those_of_encode(tmp_path: Path, make, num_threads: int) -> None:
    """A decoder that pads left, pools its last token and has a default prompt; an encoder that does not normalise."""
    path = make(tmp_path)
    texts = [f"{number} {TEXTS[0] * 5}"[: 5 + 3 * number] for number in range(24)]
    plain = SentenceTransformer(path, device="cpu")
    expected = plain.encode(texts, batch_size=4)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    resources = ForwardResources(num_threads=num_threads, batch_tokens=160)
    cfg = EmbedConfig(model=path, max_tokens=64, dtype="float32", resources=resources)
    ours = load_embedder(cfg)
    assert ours.start(ours.tokenize(texts)).result().padding_tokens > 0
    np.testing.assert_allclose(ours(texts), expected, atol=1e-5)
    if plain.default_prompt_name:  # the comparison would notice
        without = plain.encode(texts, prompt="")
        assert np.abs(without - expected).max() > 0.01


def test_an_error_in_the_model_reaches_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tiny._model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny(TEXTS)


def test_bfloat16_turns_no_vector_far() -> None:
    whole, half = (load_embedder(EmbedConfig(dtype=dtype))(TEXTS) for dtype in ("float32", "bfloat16"))
    assert ((whole * half).sum(axis=1) > 0.999).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_one_that_the_processor_multiplies_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(embedder, "choose_dtype", lambda use, wanted: {torch.bfloat16: dtype}[wanted])
    made = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))
    assert {parameter.dtype for parameter in made._model.parameters()} == {dtype}


@pytest.mark.parametrize(("speed", "warned"), [(10.0, True), (900.0, False)])
def test_bfloat16_that_is_slower_than_float32_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, speed: float, warned: bool
) -> None:
    monkeypatch.setattr(embedder, "compare_with_float32", lambda dtype: {torch.bfloat16: (speed, 80.0)}[dtype])
    with caplog.at_level(logging.WARNING, logger=embedder.__name__):
        load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64, dtype="bfloat16"))(TEXTS)
    ours = [record.getMessage() for record in caplog.records if record.name == embedder.__name__]
    assert ["10 billion operations a second in bfloat16" in line for line in ours] == [True] * warned


def test_more_tokens_than_the_model_reads_are_refused() -> None:
    with pytest.raises(SbpError, match=r"embed.max_tokens \(5000\) is more than .* reads \(256\)"):
        load_embedder(EmbedConfig(max_tokens=5000))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(SbpError, match=f"embed.model={tmp_path}: cannot be loaded"):
        load_embedder(EmbedConfig(model=str(tmp_path)))


def test_tables_that_are_looked_up_are_not_among_the_parameters_that_are_multiplied(tmp_path: Path) -> None:
    """BERT of 2 layers, 16 wide, 64 in the MLP: attention 4 x (16 x 16 + 16), MLP 2 x 16 x 64 + 64 + 16, two norms of
    2 x 16, in each layer; a norm of 2 x 16 after the tables, and the pooler, which is 16 x 16 + 16."""
    layer = 4 * (16 * 16 + 16) + (2 * 16 * 64 + 64 + 16) + 2 * 2 * 16
    made = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))
    assert made.num_multiplied_parameters == 2 * layer + 2 * 16 + 16 * 16 + 16


@pytest.mark.parametrize(
    "text", ["word " * 9000, "w" * 9000, " " * 9000 + "word " * 900, "a " + "w" * 9000 + " b" * 900]
)
def test_only_what_is_read_of_a_long_text_is_tokenised_unless_that_changes_the_tokens(
    tmp_path: Path, text: str
) -> None:
    made = load_embedder(EmbedConfig(model=make_bert(tmp_path), max_tokens=64))
    tokenized = made.tokenize(["short", text])
    expected = made._preprocess(["short", text])["input_ids"]
    assert [row.tolist() for row in tokenized.inputs["input_ids"]] == [[*row] for row in expected]
    assert tokenized.truncated_N.tolist() == [False, True]


def test_text_in_a_language_that_the_packaged_model_does_not_know_is_counted() -> None:
    made = load_embedder(EmbedConfig())
    assert made.tokenize(["A river flows through the capital.", "Written U.S.A., D. H. Lawrence."]).num_unknown == 0
    thai = made.tokenize(["แม่น้ำเจ้าพระยา ไหลผ่าน กรุงเทพ"])
    assert thai.num_tokens_N.tolist() == [10]
    assert thai.num_unknown == 2 + 6  # the words with marks; the third is spelt without its two vowel signs
    arabic = made.tokenize(["ينبع النهر من الجبال", "A river, Arabic نهر"])  # 4 + 5 + 2 + 6 letters; 3 in a row
    assert arabic.num_unknown == 17
