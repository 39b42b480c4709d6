"""A YAML file and dotted overrides -> settings that are known to be good."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from sbp_ray.config import Config
from sbp_ray.errors import SbpError, did_you_mean

Settings = TypeVar("Settings", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply overrides such as `pair.min_cosine=0.8`, and check everything.

    Raises:
        SbpError: the file or a setting is wrong; one line with the key and the remedy.
    """
    return settings_of(Config, read_yaml(path), overrides or [], where=str(path))


def settings_of(kind: type[Settings], tree: dict[str, Any], overrides: Sequence[str], *, where: str) -> Settings:
    """Apply overrides to a tree of settings, and check everything.

    Raises:
        SbpError: a setting is wrong; one line that starts with `where`.
    """
    for override in overrides:
        tree = _with_override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SbpError(f"{where}: {_explain(error, kind)}") from None


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1, but `1e-4` is a number, as everybody writes it."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A file's settings, unchecked.

    Raises:
        SbpError: it is not there, or holds no settings.
    """
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_YamlLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise SbpError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SbpError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise SbpError(f"{path}: must hold settings such as `run_dir: runs/demo`")
    return tree


def _with_override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """A new tree with one value changed; the old one may share parts through YAML aliases."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise SbpError(f"{override!r}: an override is written section.key=value, such as pair.min_cosine=0.8")
    try:
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        raise SbpError(f"{override!r}: the value cannot be read") from None
    return _set(tree, key.split("."), value, key)


def _set(tree: dict[str, Any], parts: list[str], value: Any, key: str) -> dict[str, Any]:
    head, *rest = parts
    if not rest:
        return {**tree, head: value}
    branch = tree.get(head) or {}
    if not isinstance(branch, dict):
        raise SbpError(f"{key}: {head} is a value, not a section")
    return {**tree, head: _set(branch, rest, value, key)}


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem in one line: key, value, what is wrong, and the nearest real key for a misspelt one."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(path[-1], _keys_at(kind, path[:-1]), before="".join(f"{part}." for part in path[:-1]))
        return f"{key}={first['input']!r}: no such setting; {hint}"
    if first["type"] == "missing":
        return f"{key}: this setting is needed and is not there"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    section: Any = kind
    for part in path:
        if get_origin(section) is dict:
            section = get_args(section)[1]
            continue
        field = section.model_fields.get(part)
        section = field.annotation if field else None
        if get_origin(section) is dict:
            continue
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return list(section.model_fields)
