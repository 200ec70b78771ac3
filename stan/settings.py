"""What a setting is: declared once, where it is used, with type, bounds, choices, default and help.

A component is a function or a class. Its positional arguments are what the caller hands over; its keyword-only
arguments are its settings. Type, bounds and choices stand in the signature, the help in the docstring::

    def huber(denoised, clean, *, delta: Annotated[float, above(0)] = 0.1, mean: Literal["all", "clip"] = "all"):
        '''L2 near zero, L1 beyond.

        Args:
            delta: where one becomes the other, in units of [0, 1] video.
            mean: over the whole batch, or over each clip first.
        '''

The fields of a dataclass are settings in the same way. Everything else (checks, messages, printed configurations, the
documentation) is made from this declaration. The setting ``flow`` may name a component of a registry
(``Annotated[str, sources]``); that component's own settings then stand in ``flow_settings`` beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union

from stan.errors import ConfigError, nearest, short

REQUIRED = dataclasses.MISSING
"""The default of a setting that must be given."""


class Limit(NamedTuple):
    """A bound on a value: ``Annotated[int, at_least(1)]``.

    Attributes:
        holds: whether a value of the right type is allowed.
        words: what is asked for, to be read after the type: "of at least 1".
    """

    holds: Callable[[Any], bool]
    words: str


def at_least(least: float) -> Limit:
    """Numbers from `least` up."""
    return Limit(lambda value: value >= least, f"of at least {least:g}")


def above(least: float) -> Limit:
    """Numbers greater than `least`."""
    return Limit(lambda value: value > least, f"above {least:g}")


def between(least: float, most: float) -> Limit:
    """Numbers from `least` to `most`, both included."""
    return Limit(lambda value: least <= value <= most, f"from {least:g} to {most:g}")


def below(least: float, limit: float) -> Limit:
    """Numbers from `least` up and less than `limit`."""
    return Limit(lambda value: least <= value < limit, f"from {least:g} to below {limit:g}")


def length(count: int) -> Limit:
    """Lists of `count` items."""
    return Limit(lambda value: len(value) == count, f"({count} of them)")


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
ODD = Limit(lambda value: value >= 1 and value % 2 == 1, "that is odd and at least 1")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting of a component or of the configuration.

    Attributes:
        type: its annotation, bounds and choices included.
        default: its default; `REQUIRED` if it must be given.
        help: meaning and unit.
    """

    name: str
    type: Any
    default: Any
    help: str

    @property
    def section(self) -> type | None:
        """The dataclass whose fields are keys below this one; None of a plain value."""
        return self.type if isinstance(self.type, type) and dataclasses.is_dataclass(self.type) else None

    def checked(self, value: Any, key: str | None = None) -> Any:
        """`value` in the declared type (a whole number passes for a float, one item for a list of one).

        A message calls it `key`, else by its name.

        Raises:
            ConfigError: naming key, value and what it should be.
        """
        try:
            return _fitted(value, self.type)
        except _Misfit:
            known, key = choices(self.type), key or self.name
            if known and isinstance(value, str):
                raise ConfigError(f"{key}={short(value)} is not known; {nearest(value, known)}") from None
            raise ConfigError(f"{key}={short(value)} should be {words(self.type)}") from None


@functools.cache
def settings_of(declaration: Any) -> Mapping[str, Setting]:
    """The settings that a function, a class or a dataclass declares, by name, in their order."""
    helps = documented(declaration)
    if dataclasses.is_dataclass(declaration):
        hints = typing.get_type_hints(declaration, include_extras=True)
        found = [
            Setting(f.name, hints[f.name], _default(f), f.metadata.get("help") or helps.get(f.name, ""))
            for f in dataclasses.fields(declaration)
        ]
    else:
        none, parameters = inspect.Parameter.empty, inspect.signature(declaration, eval_str=True).parameters
        found = [
            Setting(
                p.name,
                Any if p.annotation is none else p.annotation,
                REQUIRED if p.default is none else p.default,
                helps.get(p.name, ""),
            )
            for p in parameters.values()
            if p.kind is p.KEYWORD_ONLY
        ]
    return types.MappingProxyType({setting.name: setting for setting in found})


def complete(
    declaration: Callable[..., Any],
    given: Mapping[str, Any],
    owner: str,
    *,
    prefix: str = "",
    preset: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All settings of a component: those given, checked, and the defaults of the others.

    Args:
        owner: the component in messages ("offset source 'dis'").
        prefix: goes before the name of a setting in messages.
        preset: defaults in place of the declared ones.

    Raises:
        ConfigError: an unknown setting, a value that does not fit, or one that is missing.
    """
    known, preset, before = settings_of(declaration), preset or {}, prefix or f"{owner}: "
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"{owner} has no setting {short(name)} (={short(value)}); {nearest(name, known)}"
            )
    values = {}
    for name, setting in known.items():
        value = given[name] if name in given else preset.get(name, setting.default)
        if value is REQUIRED:
            raise ConfigError(f"{owner} needs a setting {name}, {words(setting.type)}: {setting.help}")
        values[name] = setting.checked(value, f"{before}{name}")
    for name, setting in known.items():
        registry, own = registry_of(setting.type), companion(name)
        if registry is None or own not in known:
            continue
        if values[name] in registry:
            values[own] = registry.complete(values[name], values[own], prefix=f"{before}{own}.")
        elif values[own]:
            raise ConfigError(f"{before}{own}={short(values[own])}: {name}={values[name]!r} has no settings")
    return values


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some changed: of a section those keys that are given, while another component begins with its own
    defaults in place of what belonged to the one before."""
    result = dict(settings)
    for name, value in changes.items():
        before = settings.get(name)
        sections = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[name] = changed(before, value) if sections else value  # type: ignore[arg-type]
    for name in changes.keys() & settings.keys():
        if (own := companion(name)) in settings and changes[name] != settings[name]:
            result[own] = changes.get(own, {})
    return result


def named(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a constructor, for its base: ``super().__init__(**named(locals()))`` in its first line."""
    return {name: value for name, value in scope.items() if name not in ("self", "__class__")}


def plain(settings: Any) -> dict[str, Any]:
    """Settings, or a dataclass of them, as plain data that YAML and JSON can hold: tuples become lists."""
    known = settings if isinstance(settings, Mapping) else dataclasses.asdict(settings)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


def companion(name: str) -> str:
    """Where the own settings of the component that setting `name` names stand: beside it."""
    return "settings" if name in ("name", "kind") else f"{name}_settings"


def choices(hint: Any) -> list[Any] | None:
    """The values that a type allows, if they can be counted: of a Literal, a registry, or a union of such."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    if (registry := registry_of(hint)) is not None and typing.get_origin(hint) is Annotated:
        return list(registry)
    if _is_union(hint):
        parts = [choices(part) for part in typing.get_args(hint) if part is not type(None)]
        if all(part is not None for part in parts):
            return [value for part in parts for value in part or ()]
    return None


def registry_of(hint: Any) -> Any:
    """The registry whose names a type takes, or None."""
    if typing.get_origin(hint) is Annotated:
        return next((limit for limit in hint.__metadata__ if hasattr(limit, "complete")), None)
    if _is_union(hint):
        return next(filter(lambda found: found is not None, map(registry_of, typing.get_args(hint))), None)
    return None


def words(hint: Any, plural: bool = False) -> str:
    """A type in words, bounds included: "a whole number of at least 1, or null"."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if (known := choices(hint)) is not None and not _is_union(hint):
        return ("" if len(known) == 1 else "one of ") + (", ".join(map(str, known)) or "none")
    if origin is Annotated:
        return " ".join([words(parts[0], plural), *(x.words for x in parts[1:] if isinstance(x, Limit))])
    if _is_union(hint):
        return ", or ".join(words(part, plural) for part in parts)
    if origin in (list, tuple):
        count = f"{len(parts)} " if origin is tuple and Ellipsis not in parts else ""
        return f"{'lists' if plural else 'a list'} of {count}{words(parts[0], plural=True)}"
    if origin is dict or hint is dict:
        return "sections" if plural else "a section"
    return _WORDS.get(hint, ("a value", "values"))[plural]


def documented(declaration: Any) -> dict[str, str]:
    """The help of each argument or attribute, from the docstrings of a function, or of a class and its bases."""
    helps: dict[str, str] = {}
    for part in reversed(inspect.getmro(declaration)) if inspect.isclass(declaration) else [declaration]:
        text = inspect.cleandoc(part.__doc__ or "")
        for section in re.finditer(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE):
            body = textwrap.dedent(section[1])
            for entry in re.finditer(r"^(\w+): (.*\n?(?:[ ]+.*\n?)*)", body, re.MULTILINE):
                helps[entry[1]] = " ".join(entry[2].split()).rstrip(".")
    return helps


class _Misfit(Exception):
    """A value is not of its type or beyond its bounds; `Setting.checked` says so in words."""


_WORDS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    type(None): ("null", "null"),
}


def _fitted(value: Any, hint: Any) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _fitted(value, parts[0])
        for limit in parts[1:]:
            holds = limit.holds(value) if isinstance(limit, Limit) else value in limit
            if not holds:
                raise _Misfit
        return value
    if _is_union(hint):
        for part in parts:
            try:
                return _fitted(value, part)
            except _Misfit:
                continue
        raise _Misfit
    if origin is Literal and value in parts and type(value) in map(type, parts):
        return value
    if origin in (list, tuple):
        one = not isinstance(value, (list, tuple))
        if one and (origin is tuple or isinstance(value, Mapping)):  # a section is no item
            raise _Misfit
        items = [value] if one else list(value)
        each = parts if origin is tuple and Ellipsis not in parts else [parts[0]] * len(items)
        if len(each) != len(items) or value is None:
            raise _Misfit
        return origin(_fitted(item, part) for item, part in zip(items, each))
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is Any:
        return value
    if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)  # a folder called 2024
    if isinstance(value, str) and hint in (bool, int, float):
        value = _read(value)  # a number from the environment
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and (whole or isinstance(value, float)) and abs(value) <= sys.float_info.max:  # no NaN
        return float(value)
    if hint in (bool, type(None)) and isinstance(value, hint):
        return value
    if hint is int and whole and abs(value) < 1 << 63:
        return value
    raise _Misfit


def _read(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    except ValueError:
        return text


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (Union, types.UnionType)


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()
