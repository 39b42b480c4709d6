"""The dashboard in docs/ asks for metrics that exist, and for every one of ours."""

import json
import re
from pathlib import Path

import ray.serve._private as serve_package

from sbp_ray import metrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs/grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ASKED = set(re.findall(r"\bray_\w+", " ".join(EXPRESSIONS)))


def test_our_metrics_are_all_shown_under_the_names_that_ray_gives_them() -> None:
    counters = {f"ray_{name}_total" for name in metrics._COUNTERS}
    gauges = {f"ray_{name}" for name in metrics._GAUGES}
    assert {name for name in ASKED if name.startswith("ray_sbp_")} == counters | gauges


def test_labels_are_those_that_our_metrics_carry() -> None:
    declared = metrics._COUNTERS | metrics._GAUGES
    tags = {f"ray_{name}{end}": set(keys) for name, (_, keys) in declared.items() for end in ("", "_total")}
    for expression in EXPRESSIONS:
        own = [tags[name] for name in re.findall(r"\bray_sbp_\w+", expression)]
        asked = set(re.findall(r"(\w+)\s*(?:=~|=)", expression))
        asked |= {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        assert all(asked <= keys for keys in own), expression


def test_the_engines_and_serves_metrics_exist_in_the_installed_versions() -> None:
    import importlib.util

    spec = importlib.util.find_spec("vllm.v1.metrics")
    assert spec is not None
    assert spec.submodule_search_locations
    [folder] = spec.submodule_search_locations
    vllm = (Path(folder) / "loggers.py").read_text()
    serve = "".join(path.read_text() for path in Path(serve_package.__path__[0]).glob("*.py"))
    for name in sorted(ASKED):
        if name.startswith("ray_vllm_"):
            assert f'"vllm:{name.removeprefix("ray_vllm_")}"' in vllm
        elif name.startswith("ray_serve_"):
            family = name.removeprefix("ray_").removesuffix("_total").replace("_http_", "_{protocol_name}_")
            assert f'"{family}"' in serve
