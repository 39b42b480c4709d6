"""A Ray that does not come up."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
import ray

from sbp_ray import cluster
from sbp_ray.config import ClusterConfig
from sbp_ray.errors import SbpError


@pytest.mark.parametrize("kind", [Exception, TimeoutError, ConnectionError])
def test_a_ray_that_comes_up_too_slowly_is_one_line(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def too_slow(**_: Any) -> NoReturn:
        raise kind("The current node timed out during startup.\nThis could happen because")

    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(SbpError, match=r"^Ray did not start \(The current node timed out during startup.\): see that"):
        cluster._start_local(ClusterConfig(), {"env_vars": {}})


def test_what_is_our_own_fault_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(**_: Any) -> NoReturn:
        raise ValueError("no such argument")

    monkeypatch.setattr(ray, "init", wrong)
    with pytest.raises(ValueError, match="no such argument"):
        cluster._start_local(ClusterConfig(), {"env_vars": {}})
