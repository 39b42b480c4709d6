"""A Serve application that lives as long as a batch job needs it."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from sbp_ray.artifacts import Artifact
from sbp_ray.cluster_limits import engine_demand
from sbp_ray.config import EngineConfig
from sbp_ray.engine.deploy import build_server, identity_of, require_model
from sbp_ray.engine.messages import DEPLOYMENT
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration

logger = logging.getLogger(__name__)

_REPORT_EVERY_S = 10.0
_ASK_S = 20.0
_NO_MORE_AFTER_S = 60.0
"""Where engines are up and no further one has come for so long, the job begins with those."""
_OF_JOBS = "synthesize-"
_NODE_LOST = "the actor's node was terminated"
"""In what Ray says of an actor that died with its node, and of no other."""


class _NodeLostError(Exception):
    """An engine was starting on a node that has gone, which says nothing of the engine."""


@contextmanager
def running_synthesizer(engine: EngineConfig, synthesizer: Artifact, *, owner: str) -> Iterator[str]:
    """The name of a Serve application with this synthesizer: one that runs already, else one for as long as the block.

    Args:
        engine: how to serve it.
        synthesizer: the artifact with the checkpoint.
        owner: names the batch job, so that a rerun finds, uses and in the end stops what a killed driver left behind.

    Raises:
        SbpError: the engine cannot start; the message names the cause.
    """
    require_model(synthesizer)
    identity = identity_of(engine, synthesizer)
    of_job = f"{_OF_JOBS}{_short_hash(owner)}-"
    own_name = of_job + _short_hash(f"{identity} {engine.resources}")
    _stop_outdated(of_job, own_name)
    found = _find(identity, own_name, engine)
    try:
        yield found or _start(engine, synthesizer, own_name)
    finally:
        if found in (None, own_name):
            _stop(own_name)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _stop_outdated(of_job: str, own_name: str) -> None:
    """Free what a killed driver of the same job holds with other settings: nobody else would."""
    from ray import serve

    for name in serve.status().applications:
        if name.startswith(of_job) and name != own_name:
            logger.info(f"synthesize | stops {name!r}, which an earlier run started with other settings of the engine")
            serve.delete(name)


def _find(identity: dict[str, Any], own_name: str, engine: EngineConfig) -> str | None:
    """A running application that samples from the same distribution: of this job, or a service.

    Another job's engines go when that job ends. An application that sleeps at zero engines is not asked: that would
    wake an engine only to learn what it is.
    """
    from ray import serve

    applications = serve.status().applications
    own = applications.get(own_name)
    if own and own.status in ("DEPLOYING", "RUNNING", "UNHEALTHY"):  # its name says what it serves
        logger.info(f"synthesize | uses the engine that an earlier run started as {own_name!r}")
        with suppress(_NodeLostError):
            if own.status == "DEPLOYING":
                _wait_until_running(own_name, engine, time.monotonic())
            return own_name
    for name, app in applications.items():
        if name.startswith(_OF_JOBS):
            continue
        deployment = app.deployments.get(DEPLOYMENT)
        if app.status != "RUNNING" or not deployment or not deployment.replica_states.get("RUNNING", 0):
            continue
        handle = serve.get_deployment_handle(DEPLOYMENT, app_name=name)
        try:
            answer = handle.identity.remote().result(timeout_s=_ASK_S)
        except (TimeoutError, RayError, RayServeException) as error:  # its last engine left just now, or hangs
            logger.warning(f"synthesize | {name!r} does not say what it serves ({type(error).__name__}): not used")
            continue
        if answer == identity:
            logger.info(f"synthesize | uses the engine that runs as {name!r}")
            return name
    return None


def _start(engine: EngineConfig, synthesizer: Artifact, name: str) -> str:
    from ray import serve

    start = time.monotonic()
    logger.info("synthesize | starting the engine")
    app = build_server(all_at_once(engine), synthesizer)
    log_config = {"log_level": "WARNING", "enable_access_log": False}
    # Requests go through deployment handles: a batch job opens no port.
    serve.start(proxy_location="Disabled", logging_config=log_config)
    is_up = False
    while not is_up:
        # Serve counts the failures of an application for good, whatever their cause, and begins none anew.
        if name in serve.status().applications:
            serve.delete(name)
        serve.run_many(
            [serve.RunTarget(app, name=name, route_prefix=None, logging_config=log_config)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        try:
            _wait_until_running(name, engine, start)
            is_up = True
        except _NodeLostError:
            logger.warning("synthesize | the node on which the engine started has gone: it is started on another one")
    logger.info(f"synthesize | engine is up after {duration(time.monotonic() - start)}")
    return name


def all_at_once(engine: EngineConfig) -> EngineConfig:
    """With all engines from the beginning, where the cluster as it is has room for them.

    What is requested of those that are up is not handed on to those that come later.
    """
    import ray

    most = engine.resources.model_copy(update={"min_replicas": engine.resources.max_replicas})
    wanted = engine.model_copy(update={"resources": most})
    there = ray.cluster_resources()
    fits = all(amount <= there.get(name, 0.0) for name, amount in engine_demand(wanted).items())
    return wanted if fits else engine


def _wait_until_running(name: str, engine: EngineConfig, start: float) -> None:
    """Wait as long as there is hope (a cluster may have to bring up a machine), saying what is waited for."""
    from ray import serve

    enough = max(1, engine.resources.min_replicas)
    num_up, changed = 0, start
    reported = start
    while True:
        app = serve.status().applications.get(name)
        deployment = app.deployments.get(DEPLOYMENT) if app else None
        if app and app.status == "RUNNING":
            return
        if app and app.status == "DEPLOY_FAILED":
            message = deployment.message if deployment and deployment.message else app.message
            if _NODE_LOST in message:
                raise _NodeLostError
            raise SbpError(f"the engine cannot start: {cause_of(message)}: change the engine section, or the model")
        now = time.monotonic()
        states = dict(deployment.replica_states) if deployment else {}
        if states.get("RUNNING", 0) != num_up:
            num_up, changed = states.get("RUNNING", 0), now
        if num_up >= enough and now - changed >= _NO_MORE_AFTER_S:
            logger.warning(
                f"synthesize | begins with {num_up} of {engine.resources.max_replicas} engines: no more has come for "
                f"{duration(now - changed)}"
            )
            return
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            logger.info(f"synthesize | waiting for the engine since {duration(now - start)} | replicas {states}")
        time.sleep(0.2)


def cause_of(message: str) -> str:
    """What a remote traceback says went wrong, in one line: its last line at the margin, and the one that explains it.

    Pydantic's errors, of which vLLM's settings have many, name the reason in the line after.
    """
    lines = [line for line in message.splitlines() if line.strip()]
    margins = [number for number, line in enumerate(lines) if not line[0].isspace()]
    if not margins:
        return "no cause is known, see the logs of Ray Serve"
    errors = [number for number in margins if re.match(r"[\w.]*(Error|Exception)\b", lines[number])]
    last = (errors or margins)[-1]
    return " ".join(line.strip() for line in lines[last : last + 2])[:400]


def _stop(name: str) -> None:
    """Delete our application, and with the last one Serve itself, unless somebody has it listen for HTTP."""
    from ray import serve

    if name in serve.status().applications:
        serve.delete(name)
    status = serve.status()
    if not status.applications and not status.proxies:
        serve.shutdown()
