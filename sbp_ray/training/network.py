"""How the ranks of several hosts reach one another.

Ray Train's controller reads this module with the settings of a training. Beside it nothing of the training is imported
there, which would take it as long as it takes a rank.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray.util
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class NodesNetwork(TorchConfig):  # type: ignore[misc]  # Ray's classes are untyped
    """Ranks that reach one another on every host that Ray reaches."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _NodesBackend


class _NodesBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called before the process group is set up."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Have gloo send through the network card whose address the node has in Ray.

    Else it takes the address that the host's own name resolves to. On Debian and its kin that is 127.0.1.1, and the
    ranks of several hosts wait for one another in vain.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
