"""What the README tells a newcomer to type is there, and is understood."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from sbp_ray.config_file import load_config, read_yaml, settings_of
from sbp_ray.engine.bodies import SynthesizeRequest
from sbp_ray.errors import SbpError
from sbp_ray.experiment.settings import load_experiment
from serve_apps.synthesizer import SynthesizerArgs

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
LINES = [line[4:] for line in re.sub(r"\\\n\s*", "", README).splitlines() if line.startswith("    ")]


def arguments(start: str) -> list[list[str]]:
    """The words of each command that holds `start`, from there on, without its comment."""
    found = [
        shlex.split(line[line.index(start) :], comments=True) for line in LINES if start in line and "$ " not in line
    ]
    assert found
    return found


def test_every_make_target_exists() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    for words in arguments("make "):
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words


@pytest.mark.parametrize("words", arguments("python jobs/"), ids=" ".join)
def test_every_job_and_its_settings_are_understood(words: list[str]) -> None:
    script, flag, config, *overrides = words[1:]
    assert (REPO / script).is_file()
    assert flag == "--config"
    if script == "jobs/experiment.py":
        load_experiment(str(REPO / config), [word for word in overrides if word != "--plan"])
    else:
        load_config(REPO / config, overrides)


def test_the_misspelt_setting_is_answered_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    [command] = [line for line in LINES if line.startswith("$ python")]
    [answer] = [line for line in LINES if line.startswith("error: ")]
    words = shlex.split(command)
    monkeypatch.chdir(REPO)
    with pytest.raises(SbpError) as error:
        load_config(words[words.index("--config") + 1], words[-1:])
    assert f"error: {error.value}" == answer


def test_ray_is_started_with_the_token_and_then_the_endpoint_on_it() -> None:
    start = LINES.index("source .venv/bin/activate")
    assert LINES[start + 1 : start + 3] == ["export RAY_AUTH_MODE=token", "ray start --head"]
    python, flag, module, config = shlex.split(LINES[start + 3])
    assert (python, flag) == ("python", "-m")
    assert importlib.util.find_spec(module)
    [application] = settings_of(ServeDeploySchema, read_yaml(REPO / config), [], where=config).applications
    settings_of(SynthesizerArgs, dict(application.args), [], where=config)


def test_the_body_sent_to_the_endpoint_is_valid() -> None:
    [words] = [words for words in arguments("curl ") if "synthesize" in words[1]]
    request = SynthesizeRequest.model_validate(json.loads(words[-1]))
    assert request.n == 2


def test_every_linked_file_exists() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (REPO / target).exists(), target
