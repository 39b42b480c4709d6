"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from jobs_cluster import Cluster, token_cluster
from running_service import Service, running_service

from sbp_ray.artifacts import Artifact


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node, reached through its Jobs API, with token authentication."""
    with token_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def service(local_ray: None, tiny_synthesizer: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One engine for all tests that need one; about a minute to start."""
    with running_service(tiny_synthesizer, tmp_path_factory.mktemp("service")) as running:
        yield running
