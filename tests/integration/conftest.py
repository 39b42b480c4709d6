"""Fixtures of the integration tests."""

from collections.abc import Iterator

import pytest
from jobs_cluster import Cluster, token_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node, reached through its Jobs API, with token authentication."""
    with token_cluster() as running:
        yield running
