import math
from pathlib import Path

import pytest
import torch
from packed_rows import read_rows, write_examples
from tiny import MODEL, SEQ_LEN, documents
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3ForCausalLM

from sbp_ray import attention, nll
from sbp_ray.artifacts import Artifact
from sbp_ray.attention import attend_within_documents
from sbp_ray.model import build_model, qwen3_config
from sbp_ray.nll import States, find_targets, nll_of_each, nll_of_ensemble, top_of_ensemble
from sbp_ray.scoring import EQUAL_HEADS, Ensemble, attend_with_equal_heads, load_float32, score_tokens, sum_nll
from sbp_ray.text.pair_format import Example, document_example, pair_example
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training import loss
from sbp_ray.training.batches import make_batch, make_blank_row
from sbp_ray.training.loss import SupervisedLanguageModel, Teaching, sum_cross_entropy

SPECIAL = SpecialIds(0, 1, 2)
VOCAB = 320


def tiny_lm(*, uniform: bool = False):
    lm = build_model(MODEL.model_copy(update={"tie_embeddings": False}), VOCAB, SPECIAL, seed=0)
    if uniform:
        torch.nn.init.zeros_(lm.lm_head.weight)  # every token is as likely as any other
    return lm


def packed_nll(folder: Path, lm, examples: list[Example]) -> float:
    """What the training loop computes for the rows that the examples pack into."""
    attend_within_documents(lm)
    out = Artifact("lm", str(folder))
    write_examples(out, "real", examples, SEQ_LEN)
    rows = read_rows(out, "real", SEQ_LEN)
    batch = make_batch([None] * len(rows), rows)
    with torch.no_grad():
        return SupervisedLanguageModel(lm)(batch.input_ids_BT, batch.targets, batch.documents).sum().item()


def test_uniform_logits_cost_ln_v_for_each_supervised_token(tmp_path: Path) -> None:
    nll = packed_nll(tmp_path, tiny_lm(uniform=True), [document_example([5, 6, 7], SPECIAL)])
    assert nll == pytest.approx(4 * math.log(VOCAB))  # three tokens and <eos>


def test_d1_is_never_supervised(tmp_path: Path) -> None:
    pair = pair_example([5] * 9, [7, 8], SPECIAL)
    assert packed_nll(tmp_path, tiny_lm(uniform=True), [pair]) == pytest.approx(
        3 * math.log(VOCAB)
    )  # two tokens and <eos>


def test_packed_documents_cost_what_they_cost_alone(tmp_path: Path) -> None:
    examples = [document_example(ids, SPECIAL) for ids in documents(40)]
    alone = sum_nll(tiny_lm(), examples, batch_tokens=1)  # the plain model, one document at a time
    assert packed_nll(tmp_path, tiny_lm(), examples) == pytest.approx(alone.sum(), rel=1e-6)


def test_attention_for_scoring_on_gpus_gives_the_same_and_has_as_many_keys_as_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's memory-efficient kernel takes float32 only so; the other keeps all scores."""
    from sbp_ray import scoring

    lm = tiny_lm()
    lm.save_pretrained(tmp_path)
    examples = [document_example(ids, SPECIAL) for ids in documents(9)]
    expected = sum_nll(lm, examples, batch_tokens=90)
    heads = []

    def spy(query, key, value, **options):
        heads.append((query.shape[1], key.shape[1], value.shape[1], options["attn_mask"], options["is_causal"]))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr(scoring, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # there is no GPU
    on_gpu = load_float32(tmp_path, "cuda")
    assert on_gpu.config._attn_implementation == EQUAL_HEADS
    assert sum_nll(on_gpu, examples, batch_tokens=90) == pytest.approx(expected, rel=1e-6)
    assert set(heads) == {(4, 4, 4, None, True)}


def test_attention_for_scoring_sees_all_that_is_cached() -> None:
    query, key, value = (torch.randn(2, heads, length, 8) for heads, length in ((4, 1), (2, 5), (2, 5)))
    found, _ = attend_with_equal_heads(None, query, key, value, None, scaling=0.5)
    share = torch.softmax(torch.einsum("bhtd,bhsd->bhts", query, key.repeat_interleave(2, 1)) * 0.5, -1)
    torch.testing.assert_close(found, torch.einsum("bhts,bhsd->bthd", share, value.repeat_interleave(2, 1)))


def test_scores_do_not_depend_on_the_batch() -> None:
    examples = [document_example(ids, SPECIAL) for ids in documents(20)]
    lm = tiny_lm()
    assert sum_nll(lm, examples, batch_tokens=10_000) == pytest.approx(sum_nll(lm, examples, batch_tokens=1), rel=1e-5)


def test_a_score_has_its_examples_place() -> None:
    examples = [document_example([5] * n, SPECIAL) for n in (3, 9, 1)]
    scores = sum_nll(tiny_lm(uniform=True), examples, batch_tokens=64)
    assert scores == pytest.approx([4 * math.log(VOCAB), 10 * math.log(VOCAB), 2 * math.log(VOCAB)])


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_loss_and_gradients_in_chunks_are_those_of_plain_cross_entropy(chunk: int, z_loss: float) -> None:
    torch.manual_seed(0)
    hidden_SD = torch.randn(7, 16, requires_grad=True)
    weight_VD = torch.randn(VOCAB, 16, requires_grad=True)
    target_S = torch.randint(VOCAB, (7,))
    logits_SV = hidden_SD @ weight_VD.T
    plain = torch.nn.functional.cross_entropy(logits_SV, target_S, reduction="sum")
    with_z = plain + z_loss * logits_SV.logsumexp(dim=1).square().sum()
    expected = torch.autograd.grad(with_z * 0.5, [hidden_SD, weight_VD])
    ours = sum_cross_entropy(hidden_SD, weight_VD, target_S, z_loss, chunk)
    found = torch.autograd.grad(ours[1] * 0.5, [hidden_SD, weight_VD])
    torch.testing.assert_close(ours, torch.stack([plain, with_z]))
    torch.testing.assert_close(found, expected)
    each = nll_of_each(hidden_SD.detach(), weight_VD.detach(), target_S)
    torch.testing.assert_close(each, torch.nn.functional.cross_entropy(logits_SV, target_S, reduction="none"))


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_compiled_loss_is_the_same_whatever_is_left_for_the_last_chunk(
    z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(len(graph.graph.nodes))
        return graph

    traced = torch.compile(loss._differentiate, dynamic=True, fullgraph=True, backend=count)
    monkeypatch.setattr(loss, "_compiled", lambda: traced)
    torch.manual_seed(0)
    weight_VD = torch.randn(VOCAB, 16, requires_grad=True)
    for num_tokens in (64, 67, 70, 33):
        hidden_SD = torch.randn(num_tokens, 16, requires_grad=True)
        target_S = torch.randint(VOCAB, (num_tokens,))
        eager, compiled = (
            sum_cross_entropy(hidden_SD, weight_VD, target_S, z_loss, 32, is_compiled=is_compiled)
            for is_compiled in (False, True)
        )
        torch.testing.assert_close(compiled, eager)
        expected, found = (torch.autograd.grad(sums[1], [hidden_SD, weight_VD]) for sums in (eager, compiled))
        torch.testing.assert_close(found, expected)
    assert len(graphs) <= 2  # for a last chunk of one token another, as torch has it


def test_no_number_of_tokens_or_documents_is_asked_for_between_two_optimizer_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU's host would wait for the answer. Tensors without data cannot give one."""
    monkeypatch.setattr(attention, "_attend_one_by_one", lambda query, *_: query)  # of CPUs
    monkeypatch.setitem(nll.LOGITS_AT_ONCE, "meta", 2**21)
    rows = [make_blank_row(SEQ_LEN)]
    rows[0].loss_mask_T[3:9] = True
    batch = make_batch([None], rows)
    assert batch.targets.position_S.tolist() == [2, 3, 4, 5, 6, 7]
    with torch.device("meta"):
        lm = Qwen3ForCausalLM(qwen3_config(MODEL, VOCAB, SPECIAL))
    attend_within_documents(lm)
    placed = batch.to(torch.device("meta"))
    SupervisedLanguageModel(lm)(placed.input_ids_BT, placed.targets, placed.documents)[1].backward()
    assert lm.model.layers[0].mlp.up_proj.weight.grad is not None
    with pytest.raises((RuntimeError, NotImplementedError)):
        find_targets(placed.input_ids_BT, placed.input_ids_BT > 0)


def test_the_scale_of_the_loss_is_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(0)
    weight_VD = torch.randn(VOCAB, 64, dtype=torch.bfloat16, requires_grad=True)
    hidden_SD = torch.randn(50, 64, dtype=torch.bfloat16, requires_grad=True)
    nll = sum_cross_entropy(hidden_SD, weight_VD, torch.randint(VOCAB, (50,)))[1]
    whole, third = (
        torch.autograd.grad(nll * scale, [hidden_SD, weight_VD], retain_graph=True) for scale in (1.0, 1 / 3)
    )
    for one, part in zip(whole, third, strict=True):  # 1/3 in bfloat16 is 0.33398, 0.2 % too much
        ratio = part.float().abs().sum() / one.float().abs().sum()
        assert ratio.item() == pytest.approx(1 / 3, rel=3e-4)


def test_the_logits_of_all_positions_never_exist_at_once() -> None:
    """512 tokens x 8,192 words would be 2**22 numbers; a chunk has half of them."""
    shapes: list[int] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            shapes.extend(t.numel() for t in (made if isinstance(made, tuple) else [made]) if torch.is_tensor(t))
            return made

    hidden_SD = torch.randn(512, 8, requires_grad=True)
    weight_VD = torch.randn(8192, 8, requires_grad=True)
    with Spy():
        sum_cross_entropy(hidden_SD, weight_VD, torch.randint(8192, (512,)))[1].backward()
    assert max(shapes) == 2**21


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree"):
        sum_cross_entropy(torch.zeros(3, 4), torch.zeros(8, 4), torch.zeros(2, dtype=torch.int64))


def test_an_ensemble_says_the_mean_of_its_members_probabilities() -> None:
    members = [tiny_lm(), build_model(MODEL, VOCAB, SPECIAL, seed=7), tiny_lm(uniform=True)]
    examples = [document_example(ids, SPECIAL) for ids in documents(5)]
    found = score_tokens(Ensemble(tuple(members)), examples, batch_tokens=64)
    for example, one in zip(examples, found, strict=True):
        ids_1T = torch.tensor(example.input_ids)[None].long()
        with torch.no_grad():
            p_TV = torch.stack([lm(input_ids=ids_1T).logits[0, :-1].softmax(-1) for lm in members]).mean(dim=0)
        p_T = p_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
        assert one.nll_S == pytest.approx((-p_T.log()).numpy(), rel=1e-5)
        assert one.is_top_S.tolist() == (p_TV.argmax(dim=-1) == ids_1T[0, 1:]).tolist()
    sums = sum_nll(Ensemble(tuple(members)), examples, batch_tokens=1)
    assert sums == pytest.approx([one.nll_S.sum() for one in found], rel=1e-5)


def test_one_member_alone_is_itself_to_the_bit() -> None:
    examples = [document_example(ids, SPECIAL) for ids in documents(5)]
    alone = sum_nll(tiny_lm(), examples, batch_tokens=64)
    assert (sum_nll(Ensemble((tiny_lm(),)), examples, batch_tokens=64) == alone).all()


def test_two_probabilities_of_a_half_and_a_quarter_are_three_eighths() -> None:
    """Two tokens: logits (0, 0) and (ln 3, 0), of which the second token has 1/2 and 1/4."""
    one_SD, weight_VD = torch.ones(1, 1), torch.tensor([[0.0], [0.0]])
    other_VD = torch.tensor([[math.log(3)], [0.0]])
    states = [States(one_SD, weight_VD), States(one_SD, other_VD)]
    assert nll_of_ensemble(states, torch.tensor([1])).item() == pytest.approx(-math.log(3 / 8))
    assert top_of_ensemble(states).item() == 0


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_taught_models_loss_and_gradients_are_autograds(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_SD, *taught = (torch.randn(9, 4, generator=generator) for _ in range(3))
    weight_VD, *weights = (torch.randn(11, 4, generator=generator) for _ in range(3))
    target_S = torch.randint(11, (9,), generator=generator)
    parameters = [hidden_SD.requires_grad_(), weight_VD.requires_grad_()]
    teaching = Teaching([States(*pair) for pair in zip(taught, weights, strict=True)], share)
    nll, loss = sum_cross_entropy(hidden_SD, weight_VD, target_S, z_loss=0.01, chunk=4, taught=teaching)
    ours = torch.autograd.grad(loss, parameters)
    logits_SV = hidden_SD @ weight_VD.T
    log_p_SV = logits_SV.log_softmax(dim=-1)
    mean_SV = sum((h @ w.T).softmax(dim=-1) for h, w in zip(taught, weights, strict=True)) / 2
    target_SV = (1 - share) * torch.nn.functional.one_hot(target_S, 11) + share * mean_SV
    expected = -(target_SV * log_p_SV).sum() + 0.01 * logits_SV.logsumexp(-1).square().sum()
    assert nll.item() == pytest.approx(torch.nn.functional.cross_entropy(logits_SV, target_S, reduction="sum").item())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, parameters), rtol=1e-4, atol=1e-5)
