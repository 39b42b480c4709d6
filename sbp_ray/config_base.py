"""What all sections of settings are made from: strict sections, ranges, and the resources of a stage."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy, torch and vLLM all take
Dtype = Literal["float32", "bfloat16"]
DtypeOrAuto = Literal["auto", "float32", "bfloat16"]
Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, a URL or a name on a hub; `~` is the home folder."""


class Section(BaseModel):
    """Unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Resources(Section):
    """How much of the cluster a stage takes. Never part of what an artifact is: free to change between runs."""

    num_workers: PositiveInt = 1
    """Actors, tasks or training ranks at the same time."""
    num_cpus: NonNegativeFloat = 1
    """Logical CPUs of each worker."""
    num_gpus: NonNegativeFloat = 0
    """GPUs of each worker."""
    num_threads: NonNegativeInt = 0
    """Torch threads in each worker; 0 leaves the choice to torch."""


class ForwardResources(Resources):
    """How much of the cluster takes part in forward passes of a model, and how much text each pass reads."""

    batch_tokens: PositiveInt = 4096
    """Tokens of a forward pass, padding included: short documents go in large batches, long ones in small."""


class OutsidePrices(Section):
    """What a model behind somebody's endpoint costs."""

    dollars_per_million_input_tokens: NonNegativeFloat = 0.0
    """Price, for the cost in the report."""
    dollars_per_million_output_tokens: NonNegativeFloat = 0.0
    """Price, for the cost in the report."""
