"""From a file such as `configs/experiments/alignment.yaml` to an experiment that can be run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stan.config import builtin_configs, read_tree
from stan.errors import ConfigError, nearest, short
from stan.experiments.frame import Experiment
from stan.registry import experiments
from stan.settings import Setting, settings_of


@dataclass(frozen=True)
class ExperimentConfig:
    """The keys that every experiment's file has; all others are settings of its kind.

    Attributes:
        kind: what is done; its settings stand beside it.
        title: heading of the report.
        question: what the experiment asks, and what the paper says.
        output: folder of the results.
        quick: settings of the quick form, at most 5 minutes on 2 cores.
    """

    kind: str
    title: str = ""
    question: str = ""
    output: str = ""
    quick: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """An experiment ready to run.

    Attributes:
        name: its file's name.
        config: what its file says beside the settings of its kind.
        folder: where the results go.
        command: how it was started.
        settings: all settings of its kind.
        experiment: what runs.
    """

    name: str
    config: ExperimentConfig
    folder: Path
    command: str
    settings: dict[str, Any]
    experiment: Experiment


def available() -> dict[str, str]:
    """The experiments that come along: name -> title."""
    files = sorted((builtin_configs() / "experiments").glob("*.yaml"))
    return {file.stem: str(read_tree(file).get("title", "")) for file in files}


def make_plan(
    name: str, words: Sequence[str] = (), *, quick: bool = False, output: str | None = None
) -> Plan:
    """An experiment by its name, or by a YAML file like those in `configs/experiments`.

    Args:
        name: of one that comes along, or a file.
        words: settings as ``key=value``.
        quick: lay the quick form's settings under the words.
        output: folder of the results; None: as the file says, with ``-quick`` behind it for the quick form.

    Raises:
        ConfigError: for an unknown experiment, key or value.
    """
    path = _file(name)
    common = [field.name for field in dataclasses.fields(ExperimentConfig)]
    tree = read_tree(path, words if not quick else ())
    if quick:
        tree = read_tree(path, words, over=tree.get("quick") or {})
    if "kind" not in tree:
        raise ConfigError(f"{path} names no kind of experiment: kind: {' or '.join(experiments)}")
    config = ExperimentConfig(**{key: tree.pop(key) for key in common if key in tree})
    if output is not None:
        folder = Path(output)
    else:
        folder = Path(str(config.output or f"runs/experiments/{path.stem}") + "-quick" * quick)
    declared = experiments.component(config.kind).declares
    settings = experiments.complete(config.kind, tree)
    assert declared is not None
    experiment = experiments.component(config.kind).factory(folder, declared(**settings))
    command = shlex.join(["stan", "experiment", name, *words, *["--quick"] * quick])
    return Plan(path.stem, config, folder, command, settings, experiment)


def declared_settings(name: str) -> tuple[dict[str, Any], dict[str, Setting]]:
    """The settings of an experiment's file, whole, and their declarations."""
    tree = read_tree(_file(name))
    kind = str(tree.get("kind"))
    for field in dataclasses.fields(ExperimentConfig):
        tree.pop(field.name, None)
    declared = experiments.component(kind).declares
    return experiments.complete(kind, tree), dict(settings_of(declared))


def _file(name: str) -> Path:
    ours = builtin_configs() / "experiments" / f"{name}.yaml"
    if ours.is_file():
        return ours
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    raise ConfigError(
        f"experiment {short(name)} is neither known nor a YAML file; {nearest(name, available())}"
    )
