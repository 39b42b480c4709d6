import pytest
import torch
from transformers import Qwen3ForCausalLM

from sbp_ray.config import ModelConfig
from sbp_ray.errors import SbpError
from sbp_ray.model import build_model, flops_per_token, num_parameters, padded_vocab_size, qwen3_config

TINY = ModelConfig(num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, ffn_size=48)
PAPER_3B = ModelConfig(
    num_layers=26,
    hidden_size=3072,
    num_heads=24,
    num_kv_heads=8,
    head_dim=128,
    ffn_size=8064,
    vocab_size=49152,
    tie_embeddings=False,
)
SPECIAL = (0, 1, 2)


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameter_count_is_that_of_the_built_model(tied: bool) -> None:
    config = TINY.model_copy(update={"tie_embeddings": tied})
    built = build_model(config, 64, SPECIAL, seed=0)
    assert num_parameters(config, 64) == sum(p.numel() for p in built.parameters())


def test_the_paper_shape_has_three_billion_parameters() -> None:
    with torch.device("meta"):
        built = Qwen3ForCausalLM(qwen3_config(PAPER_3B, 49152, SPECIAL))
    assert num_parameters(PAPER_3B, 49152) == sum(p.numel() for p in built.parameters())
    assert num_parameters(PAPER_3B, 49152) == pytest.approx(3e9, rel=0.05)


def test_flops_by_hand() -> None:
    config = ModelConfig(num_layers=1, hidden_size=2, num_heads=1, num_kv_heads=1, head_dim=2, ffn_size=3)
    # attention 4 x 2 x 2, MLP 3 x 2 x 3, output 5 x 2: 44 products, 6 FLOPs each; attention over 4 tokens: 6 x 2 x 4
    assert flops_per_token(config, vocab_size=5, seq_len=4) == 6 * 44 + 48


def test_the_vocabulary_follows_the_tokenizer_in_steps_of_64() -> None:
    assert padded_vocab_size(TINY, 4096) == 4096
    assert padded_vocab_size(TINY, 4097) == 4160


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(SbpError, match=r"model.vocab_size=100 is smaller than the tokenizer \(101 tokens\)"):
        padded_vocab_size(TINY.model_copy(update={"vocab_size": 100}), 101)


def test_a_seed_gives_the_weights_and_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again, other = (build_model(TINY, 64, SPECIAL, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [model.model.layers[1].mlp.up_proj.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_config_says_what_vllm_must_know() -> None:
    config = qwen3_config(TINY, 64, SPECIAL)
    assert (config.bos_token_id, config.eos_token_id) == (0, 1)
    assert config.rope_parameters["rope_theta"] == 500_000.0
