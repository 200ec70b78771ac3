"""Reading a configuration: YAML files, what they include, ``key=value`` words, checked against the schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stan.config.schema import Config
from stan.errors import ConfigError, nearest

INCLUDE = "include"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file with what it includes, lay ``key=value`` words over it, check it.

    Args:
        path: a YAML file; its ``include:`` list names further files, relative to itself, that are laid
            underneath in their order.
        overrides: words such as ``noise.sigma=[10,30]``, ``evaluation.max_frames=5``, ``data.cache=null``;
            values are YAML.

    Raises:
        ConfigError: naming the key, its value and the way out.
    """
    tree = _read(Path(path), ())
    return build([(tree, str(path)), (_parse_overrides(overrides), "command line")])


def build(trees: Sequence[tuple[DictConfig, str]]) -> Config:
    """Merge trees (each with the name of where it came from) over the defaults and check the result."""
    merged = OmegaConf.structured(Config)
    for tree, origin in trees:
        _check_keys(OmegaConf.to_container(tree), Config, "", origin)
        _list_single_values(tree, Config)
        try:
            merged = OmegaConf.merge(merged, tree)
        except OmegaConfBaseException as error:
            key = getattr(error, "full_key", None) or "?"
            value = OmegaConf.select(tree, key) if key != "?" else None
            wanted = _type_name(key)
            raise ConfigError(f"{origin}: {key}={value!r} should be {wanted}") from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{getattr(error, 'full_key', None) or '?'}: {str(error).splitlines()[0]}"
        ) from None
    assert isinstance(config, Config)
    check(config)
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain data, as saved with every run and in every checkpoint."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any], origin: str) -> Config:
    """The configuration that :func:`to_dict` gave; ``origin`` names it in errors."""
    return build([(OmegaConf.create(data), origin)])


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, every key with its meaning as a comment."""
    return "\n".join(_yaml_lines(config, 0)) + "\n"


def documented_keys(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every key as ``(path, help text, default)``, sections first with default None."""
    for field in dataclasses.fields(schema):
        nested = _nested(field)
        yield f"{prefix}{field.name}", field.metadata["help"], None if nested else _default(field)
        if nested:
            yield from documented_keys(nested, f"{prefix}{field.name}.")


def _read(path: Path, chain: tuple[Path, ...]) -> DictConfig:
    """One file merged over the files it includes."""
    resolved = path.resolve()
    if resolved in chain:
        raise ConfigError(f"{path} includes itself by way of {chain[-1]}: remove one of the include lines")
    if not path.is_file():
        raise ConfigError(
            f"no configuration file {path}; those of this project are under {builtin_configs()}"
        )
    try:
        tree = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{path} should hold `key: value` lines, not {type(tree).__name__}")
    includes = tree.pop(INCLUDE, None) or []
    names = [includes] if isinstance(includes, str) else list(includes)
    included = [_read(path.parent / str(name), (*chain, resolved)) for name in names]
    merged = OmegaConf.merge(OmegaConf.create(), *included, tree)
    assert isinstance(merged, DictConfig)
    return merged


def builtin_configs() -> Path:
    """The project's ``configs`` folder: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "configs"
    return beside if (beside / "train").is_dir() else package / "configs"


def _parse_overrides(words: Sequence[str]) -> DictConfig:
    tree = OmegaConf.create()
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{word!r} on the command line should be key=value, such as trainer.max_steps=300"
            )
        try:
            value = (
                OmegaConf.create({"value": None}) if text == "" else OmegaConf.from_dotlist([f"value={text}"])
            )
            OmegaConf.update(tree, key, value.value, force_add=True)
        except Exception as error:
            quoting = (
                "; quote values that begin with * or &"
                if "alias" in str(error) or "anchor" in str(error)
                else ""
            )
            raise ConfigError(
                f"{word!r} on the command line: {' '.join(str(error).split())}{quoting}"
            ) from None
    return tree


_CHOICES = {
    "logger": ("csv", "tensorboard", "wandb", "none"),
    "data.kind": ("davis", "set8", "folder", "video"),
    "loss.name": ("charbonnier", "rmse", "l1", "l2", "psnr"),
    "optimizer.schedule": ("cosine", "constant"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
}
_AT_LEAST: dict[str, float] = {
    "data.crop": 8, "data.frames": 1, "data.batch_size": 1, "data.workers": 0, "data.downscale": 1,
    "loss.epsilon": 0, "optimizer.lr": 0, "optimizer.final_lr": 0, "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0, "ema.decay": 0, "trainer.max_steps": 1, "trainer.nodes": 1,
    "trainer.accumulate": 1, "trainer.log_every": 1, "trainer.checkpoint_every": 1, "validation.every": 0,
    "validation.frames": 0, "validation.crop": 0, "validation.sequences": 0, "evaluation.border": 0,
    "seed": 0,
}  # fmt: skip


def check(config: Config) -> None:
    """Raise ConfigError for values out of range and combinations that cannot work."""
    values = OmegaConf.create(to_dict(config))
    for key, choices in _CHOICES.items():
        value = OmegaConf.select(values, key)
        if value not in choices:
            raise ConfigError(f"{key}={value!r} is not known; {nearest(value, choices)}")
    for key, least in _AT_LEAST.items():
        value = OmegaConf.select(values, key)
        if not value >= least:  # a NaN fails too
            raise ConfigError(f"{key}={value} should be at least {least:g}")
    if config.ema.decay >= 1:
        raise ConfigError(
            f"ema.decay={config.ema.decay} should be below 1 (0.999 is usual; 0 turns the average off)"
        )
    if len(config.optimizer.betas) != 2:
        raise ConfigError(
            f"optimizer.betas={config.optimizer.betas} should be two numbers, such as [0.9, 0.999]"
        )
    if config.optimizer.warmup_steps >= config.trainer.max_steps:
        raise ConfigError(
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} should be below "
            f"trainer.max_steps={config.trainer.max_steps}: the warm-up would never end"
        )
    if config.optimizer.final_lr > config.optimizer.lr:
        raise ConfigError(
            f"optimizer.final_lr={config.optimizer.final_lr} is above optimizer.lr={config.optimizer.lr}"
        )
    for sigma in [*config.evaluation.sigmas, *(config.validation.sigmas or [])]:
        if not 0 <= sigma <= 255:
            raise ConfigError(f"sigma {sigma:g} should be between 0 and 255 (8-bit units)")
    if config.evaluation.max_frames is not None and config.evaluation.max_frames < 1:
        raise ConfigError(
            f"evaluation.max_frames={config.evaluation.max_frames} should be at least 1, or null"
        )


def _check_keys(tree: Any, schema: type, prefix: str, origin: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for key, value in tree.items():
        if key not in fields:
            hint = nearest(key, fields) if prefix else _nearest_anywhere(str(key), list(fields))
            raise ConfigError(f"{origin}: unknown key {prefix}{key}={_short(value)}; {hint}")
        nested = _nested(fields[key])
        if nested:
            if not isinstance(value, dict):
                names = ", ".join(field.name for field in dataclasses.fields(nested))
                raise ConfigError(
                    f"{origin}: {prefix}{key}={_short(value)} should be a section with keys {names}"
                )
            _check_keys(value, nested, f"{prefix}{key}.", origin)


def _list_single_values(tree: DictConfig, schema: type) -> None:
    """Let a key that holds a list take one value too: ``evaluation.sigmas=30`` is ``[30]``."""
    plain = OmegaConf.to_container(tree)
    assert isinstance(plain, dict)
    kinds: dict[str, Any] = {"list[float]": (int, float), "list[str]": str}
    for field in dataclasses.fields(schema):
        value, nested = plain.get(field.name), _nested(field)
        kind = kinds.get(str(field.type).partition(" |")[0], ())
        if nested and value:
            _list_single_values(tree[field.name], nested)
        elif isinstance(value, kind) and not isinstance(value, bool) and not str(value).startswith("${"):
            tree[field.name] = [value]


def _nearest_anywhere(name: str, top: list[str]) -> str:
    """A hint that also finds keys in sections, so that ``lr`` points to ``optimizer.lr``."""
    inside = [path for path, _, _ in documented_keys() if path.rpartition(".")[2] == name]
    return f"did you mean {inside[0]!r}?" if inside else nearest(name, top)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nested(field: dataclasses.Field[Any]) -> type | None:
    factory = field.default_factory
    return factory if isinstance(factory, type) and dataclasses.is_dataclass(factory) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(key: str) -> str:
    """The type of a key in words, from the schema's annotation."""
    schema: type = Config
    *parents, leaf = key.partition("[")[0].split(".")
    for parent in parents:
        nested = {field.name: _nested(field) for field in dataclasses.fields(schema)}.get(parent)
        if nested is None:
            return "of another type"
        schema = nested
    annotation = {field.name: str(field.type) for field in dataclasses.fields(schema)}.get(
        leaf, "of another type"
    )
    words = {
        "int": "a whole number",
        "float": "a number",
        "str": "text",
        "bool": "true or false",
        "None": "null",
    }
    words |= {
        "list[float]": "a list of numbers",
        "list[str]": "a list of text",
        "dict[str, Any]": "a section",
    }
    return " or ".join(words.get(part.strip(), part.strip()) for part in annotation.split("|"))


def _yaml_lines(node: Any, indent: int) -> Iterator[str]:
    pad = "  " * indent
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield f"\n{pad}{field.name}:  # {field.metadata['help']}"
            yield from _yaml_lines(value, indent + 1)
        else:
            text = OmegaConf.to_yaml(OmegaConf.create([value]), resolve=True).strip().removeprefix("- ")
            if isinstance(value, (list, dict)):
                text = str(OmegaConf.create(value)) if value else ("[]" if isinstance(value, list) else "{}")
            yield f"{pad}{field.name}: {text}  # {field.metadata['help']}"
