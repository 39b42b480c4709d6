"""Deploys the endpoint as `serve deploy` does, and stays until it is ready or one line says why it will not be.

    python -m serve_apps.start serve_apps/config.yaml

`serve deploy` itself says success before anything has been looked at; afterwards `serve status` has the reason, at the
end of a traceback.
"""

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve.schema import ServeDeploySchema

from sbp_ray.cli import Parser, exit_with
from sbp_ray.config_file import read_yaml, settings_of
from sbp_ray.engine.access import Keys, is_loopback
from sbp_ray.engine.deploy import require_model
from sbp_ray.engine.running import cause_of
from sbp_ray.errors import SbpError, one_line
from sbp_ray.logs import duration, set_up_logging
from serve_apps.synthesizer import SynthesizerArgs, synthesizer_artifact

logger = logging.getLogger("sbp_ray.serve_apps")

_OURS = "serve_apps.synthesizer:app"
_SYNTHESIZER = "SBP_RAY_SYNTHESIZER"  # read by nobody
_REPORT_EVERY_S = 10.0
_ASK_EVERY_S = 0.5


def start(config_file: Path, address: str) -> None:
    """Check the config, deploy it, and wait.

    Raises:
        SbpError: it cannot work, or an application does not come up.
    """
    deployed = checked(config_file)
    client = connected(address)
    refuse_taken_address(client.get_serve_details(), deployed, address)
    try:
        client.deploy_applications(deployed.model_dump(exclude_unset=True))
    except RuntimeError as error:
        raise SbpError(f"Serve has not taken {config_file}: {one_line(error)}: see `serve status`") from None
    wait_until_running(client, [application.name for application in deployed.applications])
    http = deployed.http_options
    logger.info(f"serve | ready at http://{http.host}:{http.port} | `serve shutdown -y` ends it, `ray stop` Ray")


def checked(config_file: Path) -> ServeDeploySchema:
    """The Serve config, with what its applications of ours name."""
    tree = read_yaml(config_file)
    deployed = settings_of(ServeDeploySchema, tree, [], where=str(config_file))
    for application in deployed.applications:
        if application.import_path == _OURS:
            where = f"{config_file}: args of {application.name}"
            args = settings_of(SynthesizerArgs, dict(application.args), [], where=where)
            artifact = synthesizer_artifact(args.model)
            require_model(artifact)
            Keys(args.service.keys_file)
            # Serve builds an application anew where its config differs, as it now does for another model in a folder.
            variables = {**application.runtime_env.get("env_vars", {}), _SYNTHESIZER: artifact.fingerprint()}
            application.runtime_env = {**application.runtime_env, "env_vars": variables}
    return deployed


def connected(address: str) -> ServeSubmissionClient:
    """The dashboard of a running Ray, which takes Serve's configs."""
    try:
        return ServeSubmissionClient(address)
    except ConnectionError:
        raise SbpError(
            f"there is no Ray at {address}: run `ray start --head`, or name its dashboard in RAY_DASHBOARD_ADDRESS"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise SbpError(f"the Ray at {address} does not let us in: {one_line(error)}") from None


def refuse_taken_address(details: dict[str, Any], deployed: ServeDeploySchema, address: str) -> None:
    """Serve binds once, when it starts, and says nothing where it cannot."""
    http = deployed.http_options
    if details.get("proxies"):
        bound = details["http_options"]["host"], details["http_options"]["port"]
        if bound != (http.host, http.port):
            raise SbpError(
                f"Serve listens on {bound[0]}:{bound[1]} until it ends, and not on {http.host}:{http.port}: run "
                "`serve shutdown -y` first, or set http_options to what it has"
            )
    elif is_loopback(urlsplit(address).hostname):
        host = http.host if is_loopback(http.host) else "127.0.0.1"
        with socket.socket() as probe:
            if probe.connect_ex((host, http.port)) == 0:
                raise SbpError(
                    f"port {http.port} of {host} is taken: stop what listens there, or change http_options.port"
                )


def wait_until_running(client: ServeSubmissionClient, names: list[str]) -> None:
    """Say every few seconds what is waited for."""
    start = reported = time.monotonic()
    while True:
        applications = client.get_serve_details()["applications"]
        states = {
            name: applications.get(name, {"status": "DEPLOYING", "message": "", "deployments": {}}) for name in names
        }
        for name, state in states.items():
            if state["status"] == "DEPLOY_FAILED":
                messages = [deployment["message"] for deployment in state["deployments"].values()]
                cause = cause_of(max([*messages, state["message"]], key=len))
                raise SbpError(f"{name} cannot start: {cause.removeprefix('sbp_ray.errors.SbpError: ')}")
        if all(state["status"] == "RUNNING" for state in states.values()):
            return
        if time.monotonic() - reported >= _REPORT_EVERY_S:
            reported = time.monotonic()
            logger.info(f"serve | waiting since {duration(reported - start)} | {_waited_for(states)}")
        time.sleep(_ASK_EVERY_S)


def _waited_for(states: dict[str, Any]) -> str:
    """Deployments that are not up yet, with what Serve says of them."""
    waiting = [
        f"{name} {deployment['status'].lower()} {' '.join(deployment['message'].split())[:200]}".strip()
        for state in states.values()
        for name, deployment in state["deployments"].items()
        if deployment["status"] != "HEALTHY"
    ]
    return ", ".join(waiting) or "the application is being built"


def main() -> None:
    """The command."""
    parser = Parser(prog="-m serve_apps.start", description=__doc__)
    parser.add_argument("config", type=Path, metavar="FILE", help="a Serve config, such as serve_apps/config.yaml")
    arguments = parser.parse_args()
    set_up_logging()
    start(arguments.config, os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265"))


if __name__ == "__main__":
    exit_with(main)
