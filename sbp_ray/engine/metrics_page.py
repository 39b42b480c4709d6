"""`/metrics`: what the engines, Serve and the pipeline count, in Prometheus' text form.

Every node of Ray has an agent that gathers the numbers of the processes there. The page puts together those of all
nodes, some seconds old, under vLLM's own names where they are vLLM's.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterable

import ray
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAMES = {"ray_vllm_": "vllm:", "ray_serve_": "ray_serve_", "ray_sbp_": "ray_sbp_"}
"""How the names begin that are on the page: at Ray's agents, and here."""
_WITHIN_S = 5.0


async def metrics_page() -> str:
    """Of all nodes that answer. In threads: asking and reading take seconds where there are many, and answers go on."""
    addresses = await asyncio.to_thread(_find_agents)
    pages = await asyncio.gather(*(asyncio.to_thread(_fetch, address) for address in addresses))
    return await asyncio.to_thread(joined, [page for page in pages if page is not None])


def _find_agents() -> list[str]:
    agents = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]]
    return [f"http://{host}:{port}/metrics" for host, port in agents if port]


def _fetch(url: str) -> str | None:
    """None where the node has just gone, or its agent is starting: the others' numbers are still true."""
    try:
        with urllib.request.urlopen(url, timeout=_WITHIN_S) as answer:  # noqa: S310 (an address that Ray names)
            return str(answer.read(), "utf-8")
    except OSError:
        return None


def joined(pages: Iterable[str]) -> str:
    """The families of several pages that are for here, each once."""
    families: dict[str, Metric] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for there, here in _NAMES.items():
                if family.name.startswith(there):
                    name = here + family.name.removeprefix(there)
                    own = families.setdefault(name, Metric(name, family.documentation, family.type))
                    for sample in family.samples:
                        own.add_sample(here + sample.name.removeprefix(there), sample.labels, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return str(generate_latest(registry), "utf-8")


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
