"""The synthesizer's endpoint, as `serve deploy serve_apps/config.yaml` builds it."""

# Serve checks `args` only against a real class in the annotation: no `from __future__ import annotations` here.

import posixpath
from pathlib import Path

from pydantic import Field
from ray.serve import Application

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.cluster_limits import demand_of_engines, refuse_without_room
from sbp_ray.config import EngineConfig, Place, Section, ServiceConfig
from sbp_ray.engine.access import check_door_of_serve
from sbp_ray.engine.deploy import build_app
from sbp_ray.errors import SbpError
from sbp_ray.logs import set_up_logging


class SynthesizerArgs(Section):
    """Arguments of the application: `args` in the Serve config."""

    model: Place
    """The model folder of a synthesizer artifact, such as runs/demo/6_synthesizer/model; relative to this checkout."""
    engine: EngineConfig = Field(default_factory=EngineConfig)
    """As the `engine` section of a pipeline's config."""
    service: ServiceConfig = Field(default_factory=ServiceConfig)
    """Keys and limits."""


def app(args: SynthesizerArgs) -> Application:
    """The application: HTTP ingress and engine replicas.

    What only its processes would find, each at its own start, is looked at here: no engine starts for nothing.
    """
    set_up_logging()
    artifact = synthesizer_artifact(args.model)
    check_door_of_serve(args.service.keys_file)
    refuse_without_room("engine", demand_of_engines(args.engine))
    return build_app(args.engine, artifact, args.service)


def synthesizer_artifact(model: str) -> Artifact:
    """The artifact that a model folder belongs to.

    Raises:
        SbpError: it is not there, or is no synthesizer's.
    """
    folder = model.rstrip("/")
    if "://" not in folder:
        folder = str((Path(__file__).parent.parent / folder).resolve())
    artifact = Artifact("synthesizer", posixpath.dirname(folder))
    if posixpath.basename(folder) != "model" or not artifact.exists(STARTED):
        raise SbpError(
            f"{folder} is not the model folder of a synthesizer: run jobs/tune.py first, "
            "and name <run_dir>/6_synthesizer/model"
        )
    return artifact
