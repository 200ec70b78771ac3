"""Reading a configuration: YAML files, what they include, ``key=value`` words, checked against the schema."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stan.config.schema import Config, DataConfig, LossConfig, ModelConfig, NoiseConfig, checked_part
from stan.data.noise.sigma import parse_sigma
from stan.data.sources import takes_noisy
from stan.errors import CheckpointError, ConfigError, nearest, short
from stan.imports import import_modules
from stan.models.checkpoint import RENAMED, imports_of, read
from stan.registry import Registry, losses, networks, noises, tasks
from stan.settings import REQUIRED, Setting, companion, plain, settings_of

INCLUDE = "include"

Tree = dict[str, Any]
Layer = tuple[Tree, str]
"""Keys and values, and where they come from."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with what it includes, lay ``key=value`` words over it, check it.

    Args:
        path: a YAML file, or the name of one of ours, such as ``train/demo.yaml``; its ``include:`` list names
            further files, relative to itself or of ours, that are laid underneath in their order.
        overrides: words such as ``noise.sigma=[10,30]``, ``data.cache=null`` or ``data.parts.0.split=val``, which
            changes an entry of a list by its number; values are YAML.

    Raises:
        ConfigError: naming the key, its value and the way out.
    """
    try:
        file = _read(_find(Path(path)), ())
        return build([(file, str(path)), (_parse_overrides(overrides), "command line")])
    except RecursionError:
        raise ConfigError(f"{path} or the command line is nested too deeply") from None


def build(layers: Sequence[Layer], *, resolve: bool = True) -> Config:
    """Lay trees over each other, fill in defaults and presets, and check the result.

    Naming another component (network, noise kind, loss, ...) than a layer below leaves the settings behind that were
    written for that one.

    Args:
        layers: from the lowest up.
        resolve: replace ``${...}`` by what it names; else such text stays as it is.

    Raises:
        ConfigError: see `load`.
    """
    merged: Tree = {}
    for tree, origin in layers:
        _lay(merged, copy.deepcopy(tree), origin)
    if resolve:
        try:
            merged = _plain(OmegaConf.create(merged), resolve=True)
        except RecursionError:
            raise
        except Exception as error:
            raise ConfigError(f"{layers[0][1]}: {_line(error)}") from None
    _import(merged, layers[0][1])
    config: Config = _record(Config, merged, "", layers)
    _check_parts(config.data, layers)
    _fill_in(config)
    _check_combinations(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain data, as saved with every run and in every checkpoint."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any], origin: str) -> Config:
    """The configuration that :func:`to_dict` gave; ``origin`` names it in errors."""
    return build([(data, origin)], resolve=False)


def read_tree(path: str | Path, overrides: Sequence[str] = (), over: Mapping[str, Any] | None = None) -> Tree:
    """The keys of a YAML file and of those it includes, not checked: for files of another schema than `Config`.

    Args:
        path: as for `load`.
        overrides: ``key=value`` words, laid over all.
        over: keys laid between the two; each replaces the file's whole value.

    Raises:
        ConfigError: a file that is missing or no YAML, or a word that is none.
    """
    tree = _read(_find(Path(path)), ()) | dict(over or {})
    _lay(tree, _parse_overrides(overrides), "command line")
    return tree


def builtin_configs() -> Path:
    """The project's ``configs`` folder: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "configs"
    return beside if (beside / "train").is_dir() else package / "configs"


def _find(path: Path, name: str | None = None) -> Path:
    """A file; where there is none, ours of that name (the path's own, if not given)."""
    ours = [folder / (name or path) for folder in (builtin_configs(), builtin_configs().parent)]
    try:
        return next((place for place in (path, *ours) if place.exists()), path)
    except OSError as error:
        raise ConfigError(f"configuration file {short(str(path))}: {error.strerror}") from None


def _read(path: Path, chain: tuple[Path, ...]) -> Tree:
    """One file laid over the files it includes."""
    resolved = path.resolve()
    if resolved in chain:
        raise ConfigError(f"{path} includes itself by way of {chain[-1]}: remove one of the include lines")
    if not path.is_file():
        raise ConfigError(
            f"no configuration file {path}; those of this project are under {builtin_configs()}"
        )
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path} is not valid YAML: {_line(error)}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} should hold `key: value` lines, not {type(loaded).__name__}")
    tree = _plain(loaded)
    includes = tree.pop(INCLUDE, None) or []
    names = includes if isinstance(includes, list) else [includes]
    merged: Tree = {}
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: {INCLUDE}={short(includes)} should be a file, or a list of files")
        _lay(merged, _read(_find(path.parent / name, name), (*chain, resolved)), name)
    _lay(merged, tree, str(path))
    return merged


def _parse_overrides(given: Sequence[str]) -> Tree:
    tree: Tree = {}
    for word in given:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{short(word)} on the command line should be key=value, such as trainer.max_steps=300"
            )
        try:
            value = _plain(OmegaConf.from_dotlist([f"value={text}"]))["value"] if text else None
            parsed = OmegaConf.create()
            OmegaConf.update(parsed, key, value, force_add=True)
            upper = _plain(parsed)
        except Exception as error:
            reference = any(word in str(error) for word in ("alias", "anchor"))
            quoting = "; quote values that begin with * or &" if reference else ""
            raise ConfigError(f"{short(word)} on the command line: {_line(error)}{quoting}") from None
        _merge(tree, upper, "command line")
    return tree


def _plain(tree: Any, resolve: bool = False) -> Tree:
    plain: Any = OmegaConf.to_container(tree, resolve=resolve)
    return plain


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).partition(" full_key:")[0] or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def _lay(lower: Tree, upper: Mapping[str, Any], origin: str) -> None:
    """Lay a tree over another one in place; a component named anew leaves the settings of the earlier one behind."""
    _leave_behind(lower, upper, origin)
    _merge(lower, upper, origin)


def _leave_behind(lower: Tree, upper: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    """Remove the settings of components that the upper tree names anew."""
    for key, value in upper.items():
        before = lower.get(key)
        renamed = isinstance(value, str) and isinstance(before, str) and value != before
        if not renamed or "${" in value + before:
            continue
        inner = lower.get("settings")
        for place in (lower, inner if isinstance(inner, dict) else {}):
            if left := place.pop(companion(str(key)), None):
                said = f"{prefix}{key}={short(value)} leaves the settings of {short(before)} behind"
                print(f"stan: {origin}: {said}: {', '.join(map(str, left))}"[:400], file=sys.stderr)
    for key, value in upper.items():
        before = lower.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            _leave_behind(before, value, origin, f"{prefix}{key}.")


def _merge(lower: Tree, upper: Mapping[str, Any], origin: str, prefix: str = "") -> None:
    """Lay a tree over another one in place: keys over those of a section, numbers over the entries of a list."""
    for key, value in upper.items():
        before, path = lower.get(key), f"{prefix}{key}"
        if isinstance(before, list) and _by_number(value):
            lower[key] = _merged_list(before, value, origin, path)
        elif isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value, origin, f"{path}.")
        else:
            lower[key] = value


def _by_number(value: Any) -> bool:
    """Whether these are entries of a list by their numbers, as ``data.parts.0.split=val`` gives them."""
    return isinstance(value, dict) and value != {} and all(str(key).isdecimal() for key in value)


def _merged_list(lower: list[Any], upper: Tree, origin: str, path: str) -> list[Any]:
    """A list with entries laid over those of the same number."""
    entries, changes = _inside(lower), _inside(upper)
    for number, entry in changes.items():
        if number not in entries:
            raise ConfigError(
                f"{origin}: {path} has no entry {short(number)} (={short(entry)}); it has {len(lower)}, counted from 0"
            )
    _merge(entries, changes, origin, f"{path}.")
    return list(entries.values())


def _inside(node: Any) -> Tree:
    """What a section holds by its keys, a list by its numbers; of anything else nothing."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
    return {str(key): value for key, value in pairs}


def _import(tree: Tree, origin: str) -> None:
    """Import the modules that the configuration and its checkpoints name; `imports` becomes the list of them."""
    named = tree.get("imports") or []
    own = list(map(str, named if isinstance(named, list) else [named]))
    if missing := import_modules(own, origin):
        raise ConfigError(missing[0])
    checkpoints = tree.get("checkpoint")
    for path in checkpoints if isinstance(checkpoints, list) else [checkpoints]:
        for name in _imports_of(path):
            if missing := import_modules([name], f"checkpoint {path}"):  # what is evaluated may not need it
                print(f"stan: {missing[0]}; going on without it", file=sys.stderr)
            else:
                own.append(name)
    if own:
        tree["imports"] = list(dict.fromkeys(own))


def _imports_of(path: Any) -> list[str]:
    """What a checkpoint's training imported; nothing of what is no checkpoint, which is told when it is loaded."""
    if not isinstance(path, str) or not path.endswith((".ckpt", ".safetensors")):
        return []
    try:
        return imports_of(read(Path(path).expanduser())[1])
    except (CheckpointError, OSError):
        return []


def _record(schema: type, tree: Any, prefix: str, layers: Sequence[Layer]) -> Any:
    """A section of the configuration from plain data, every key and value checked by itself."""
    known = settings_of(schema)
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{_origin(prefix[:-1], layers)}: {prefix[:-1]}={short(tree)} should be a section with keys "
            f"{', '.join(known)}"
        )
    for key, value in tree.items():
        if key not in known:
            hint = nearest(key, known) if prefix else _nearest_anywhere(str(key), known)
            path = f"{prefix}{key}"
            shown = path if len(path) <= 80 else short(path)
            raise ConfigError(f"{_origin(path, layers)}: unknown key {shown}={short(value)}; {hint}")
    values = {}
    for name, setting in known.items():
        path = f"{prefix}{name}"
        if setting.section:
            values[name] = _record(setting.section, tree.get(name, {}), f"{path}.", layers)
        else:
            given = tree.get(name, setting.default)
            if isinstance(setting.default, list) and _by_number(given):
                given = _merged_list(setting.default, given, _origin(path, layers), path)
            try:
                values[name] = setting.checked(given, path)
            except ConfigError as error:
                raise ConfigError(f"{_origin(path, layers)}: {error}") from None
    return schema(**values)


def _check_parts(data: DataConfig, layers: Sequence[Layer]) -> None:
    """Bring what the parts of a mixture state into the declared types, key by key to tell where each was set."""
    for number, given in enumerate(data.parts):
        path = f"data.parts.{number}"
        for key, value in given.items():
            try:
                given.update(checked_part({key: value}, path))
            except ConfigError as error:
                raise ConfigError(f"{_origin(f'{path}.{key}', layers)}: {error}") from None


def _origin(path: str, layers: Sequence[Layer]) -> str:
    """Where a key was set last."""
    for tree, origin in reversed(layers):
        node: Any = tree
        for part in path.split("."):
            node = _inside(node).get(part, REQUIRED)
        if node is not REQUIRED:
            return origin
    return layers[0][1]


def _nearest_anywhere(name: str, top: Mapping[str, Setting]) -> str:
    """A hint that also finds keys in sections, so that ``lr`` points to ``optimizer.lr``."""
    inside = [
        f"{section}.{name}"
        for section, setting in top.items()
        if setting.section and name in settings_of(setting.section)
    ]
    return f"did you mean {inside[0]!r}?" if inside else nearest(name, top)


def _fill_in(config: Config) -> None:
    """Make the settings of the named components whole: what is set over what the name brings."""
    if "epsilon" not in losses.settings(config.loss.name):
        config.loss.epsilon = None  # configurations of before have it for every loss
    name = config.model.name
    if name in RENAMED and {"stem", "channels", "attention"} <= config.model.settings.keys():
        now = config.model.name = RENAMED[name]
        print(f"stan: these are settings of what was called {name} before: {now} now", file=sys.stderr)
    if config.model.blind is False and "blind" not in networks.settings(config.model.name):
        config.model.blind = None  # a network without that choice is none
    config.task_settings = plain(tasks.complete(config.task, config.task_settings, "task_settings."))
    _complete(config.model, networks, config.model.name, "model.settings.")
    _complete(config.noise, noises, config.noise.kind, "noise.settings.")
    _complete(config.loss, losses, config.loss.name, "loss.settings.")


def _complete(
    section: ModelConfig | NoiseConfig | LossConfig, registry: Registry[Any], name: str, prefix: str
) -> None:
    whole = registry.complete(name, section.given, prefix)
    for key in section.common:
        setattr(section, key, whole.pop(key, None))
    section.settings = plain(whole)


def _check_combinations(config: Config) -> None:
    """Raise ConfigError for values that cannot go together, and for those with a notation of their own."""
    _check_pairs(config)
    optimizer, steps = config.optimizer, config.trainer.max_steps
    if optimizer.warmup_steps >= steps:
        raise ConfigError(
            f"optimizer.warmup_steps={optimizer.warmup_steps} should be below trainer.max_steps={steps}: the warm-up "
            "would never end"
        )
    if optimizer.final_lr > optimizer.lr:
        raise ConfigError(f"optimizer.final_lr={optimizer.final_lr} is above optimizer.lr={optimizer.lr}")


def _check_pairs(config: Config) -> None:
    """Raise ConfigError where the noise is recorded and settings are those of added noise, or the other way round."""
    data, sigmas = config.data, parse_sigma(config.noise.sigma)
    if not takes_noisy(data.kind):
        for key in ("noisy", "validation_noisy"):
            if getattr(data, key) is not None:
                raise ConfigError(
                    f"data.{key}={getattr(data, key)} goes with data.kind=pairs, and data.kind is {data.kind}"
                )
        return
    if data.noisy is None:
        raise ConfigError(
            f"data.kind={data.kind} needs data.noisy, the noisy recordings, beside data.root with the clean ones"
        )
    if (data.validation_root is None) != (data.validation_noisy is None):
        there, missing = ("root", "noisy") if data.validation_noisy is None else ("noisy", "root")
        value = getattr(data, f"validation_{there}")
        raise ConfigError(f"data.validation_{there}={value} needs its other half, data.validation_{missing}")
    if config.task != "denoise":
        raise ConfigError(
            f"task={config.task} makes the input from clean video, and data.kind={data.kind} has it recorded: set "
            "task=denoise, or another data.kind"
        )
    if sigmas.low != sigmas.high:
        raise ConfigError(
            f"noise.sigma={sigmas} should be one number with data.kind={data.kind}: no noise is added, and this is "
            "the level that networks are told of the recorded noise (stan denoise says how strong it is)"
        )
