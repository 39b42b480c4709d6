"""Rounds of bootstrapping, as provenance: which text was written by a model that had read synthetic text before.

Real text and what is made from it alone is of round 0. A synthesizer is of the round after that of the LM which it was
tuned from, and so is the text that it writes; a joint LM is of the round of the text that it reads.
"""

from __future__ import annotations

from sbp_ray.artifacts import Artifact


def round_of(made: Artifact) -> int:
    """Of a finished artifact, as its manifest says; 0 where it says nothing."""
    manifest = made.manifest()
    return 0 if manifest is None else int(manifest["stats"].get("round", 0))


def round_of_text(writer: Artifact) -> int:
    """Of what a synthesizer writes, or in its place a base LM, whose text is the first that is synthetic."""
    return max(1, round_of(writer))
