"""The configuration as people read it: YAML with comments, and tables of all keys and components."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from stan.config.schema import Config
from stan.settings import Setting, choices, companion, registry_of, settings_of

_PLAIN = re.compile(r"[\w./~+-]([\w ./~+*-]*[\w./~+*-])?")
"""Text that may need no quotes."""


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, every key with its meaning as a comment."""
    return "\n".join(_lines(settings_of(Config), vars(config), 0)) + "\n"


def documented_keys(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Setting]]:
    """Every key of the schema as (path, declaration), sections before what is in them."""
    for name, setting in settings_of(schema).items():
        yield f"{prefix}{name}", setting
        if setting.section:
            yield from documented_keys(setting.section, f"{prefix}{name}.")


def value_text(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Mapping):
        items = [f"{value_text(key)}: {value_text(inner)}" for key, inner in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and OmegaConf.create(f"- {value}")[0] == value:
        return value
    text = json.dumps(value, ensure_ascii=False)  # which is YAML as well, but for numbers such as 1e-07
    return re.sub(r"^(-?\d+)(e.*)$", r"\1.0\2", text).replace("${", "\\\\${")


def meaning(setting: Setting) -> str:
    """The help of a setting with the values there are to choose from."""
    known = choices(setting.type)
    return f"{setting.help} ({', '.join(map(str, known))})" if known else setting.help


def _lines(
    known: Mapping[str, Setting],
    values: Mapping[str, Any],
    indent: int,
    outer: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """The lines of a section or of a component's settings; `outer`: the section in which these stand."""
    pad = "  " * indent
    named = {**(outer or {}), **values}
    inner = {}
    for name, setting in known.items():
        registry = registry_of(setting.type)
        if registry is not None and named.get(name) in registry:
            inner[companion(name)] = registry.settings(named[name])
    for name, setting in known.items():
        value = values.get(name)
        if name not in values:
            continue
        if setting.section:
            yield f"\n{pad}{name}:  # {setting.help}"
            yield from _lines(settings_of(setting.section), vars(value), indent + 1)
        elif value and name in inner:
            yield f"{pad}{name}:  # {meaning(setting)}"
            yield from _lines(inner[name], value, indent + 1, values)
        else:
            yield f"{pad}{name}: {value_text(value)}  # {meaning(setting)}"
