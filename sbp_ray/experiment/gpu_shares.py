"""Which GPU a job has that works in its own process: Ray, which gives all others theirs, does not know of it.

Where Ray runs, an actor that does nothing holds the GPU for as long as the job runs (`RayShares`); where it does not,
this process shares the machine's GPUs out (`OwnShares`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"


class OwnShares:
    """Shares out the GPUs of this machine, or parts of one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._used = dict.fromkeys(names, 0.0)
        self._held: dict[str, tuple[str, float]] = {}

    def take(self, key: str, share: float) -> str:
        """The name of a GPU for the job `key`: the one that is used least; of equals the first."""
        name = min(self._used, key=self._used.__getitem__)
        self._used[name] += share
        self._held[key] = name, share
        return name

    def give_back(self, key: str) -> None:
        """The job has ended; nothing where it had no GPU."""
        if key in self._held:
            name, share = self._held.pop(key)
            self._used[name] -= share


class RayShares:
    """Has Ray hand GPUs of this node out."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def take(self, key: str, share: float) -> str:
        """The name of a GPU for the job `key`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        class Holder:
            """Holds it."""

            def name(self) -> str:
                """Of the GPU."""
                return str(ray.get_gpu_ids()[0])

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        holder = ray.remote(Holder).options(num_cpus=0, num_gpus=share, scheduling_strategy=here).remote()
        self._held[key] = holder
        return str(ray.get(holder.name.remote()))

    def give_back(self, key: str) -> None:
        """The job has ended; nothing where it had no GPU."""
        import ray

        holder = self._held.pop(key, None)
        if holder is not None:
            ray.kill(holder)


def list_gpus(number: int) -> list[str]:
    """The names of the GPUs that this process sees, of which there are so many."""
    visible = os.environ.get(VISIBLE)
    return visible.split(",")[:number] if visible else [str(place) for place in range(number)]
