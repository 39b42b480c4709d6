"""What d1 saves each of several synthesizers on each of several sets of held-out pairs, in nats a token of d2.

    python benchmarks/conditional_gain.py RUN_DIR RUN_DIR …

Each run tuned one synthesizer on its own pairs, which are easier or harder than another's: so each is scored on all of
them. The interval is over groups of pairs that share no document.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TrainingResources, TuneConfig
from sbp_ray.scoring import load_model
from sbp_ray.stages.tune import choose_held_out_pairs, score_held_out_pairs
from sbp_ray.text.tokenizer import load_tokenizer, special_ids
from sbp_ray.training.training_plan import MODEL_FOLDER

_BATCH_TOKENS = 8192


def main() -> None:
    """Print a row for each synthesizer and each run's held-out pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="+", help="with its corpus, pairs and synthesizer")
    parser.add_argument("--pairs", type=int, default=160, help="held-out pairs of each run at most")
    arguments = parser.parse_args()
    cfg = TuneConfig(max_validation_pairs=arguments.pairs, batch_rows=1, peak_lr=1)
    for tuned in arguments.run_dir:
        model = load_model(_artifact(tuned, "synthesizer").local_copy(MODEL_FOLDER), TrainingResources())
        for measured in arguments.run_dir:
            corpus, pairs = _artifact(measured, "corpus"), _artifact(measured, "pairs")
            special = special_ids(load_tokenizer(corpus.local_copy("tokenizer")))
            examples = choose_held_out_pairs(cfg, corpus, pairs, special, model.config.max_position_embeddings)
            _, gain = score_held_out_pairs(model, examples, _BATCH_TOKENS)
            saved = gain["saved_over_random"]
            interval = f"[{saved['low']:+.3f}, {saved['high']:+.3f}]" if "low" in saved else "no interval"
            print(
                f"tuned on {tuned}, measured on {len(examples)} held-out pairs of {measured}: "
                f"{gain['nll_given_d1']:.3f} nats a token given d1, {gain['nll_given_random']:.3f} given an unrelated "
                f"document, {gain['nll_alone']:.3f} alone; d1 saves {saved['value']:+.3f} {interval} over an unrelated "
                f"one, {saved['units']} groups"
            )


def _artifact(run_dir: str, noun: str) -> Artifact:
    [folder] = Path(run_dir).glob(f"*_{noun}")
    return Artifact(noun, str(folder))


if __name__ == "__main__":
    main()
