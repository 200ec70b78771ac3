"""Conditions: what a network is trained to undo, and what a checkpoint says that it was trained to undo."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from stan.config import Config
from stan.data import degradation as degradations
from stan.data import noise as noises
from stan.data.degradation import Degradation
from stan.data.noise import Noise, SigmaRange, parse_sigma
from stan.data.pairs import RECORDED
from stan.errors import CheckpointError
from stan.models.checkpoint import read


@dataclass(frozen=True)
class Condition:
    """What a share of the clips is made worse by.

    Attributes:
        share: of the clips of a training.
        degradation: before the noise.
        noise: its kind.
        sigmas: its levels.
    """

    share: float
    degradation: Degradation
    noise: Noise
    sigmas: SigmaRange

    @property
    def what(self) -> dict[str, Any]:
        """All but share and levels, as plain data: conditions with the same differ in their levels alone."""
        task, noise = self.degradation, self.noise
        named = {"noise": noise.kind, "noise_settings": noise.settings}
        return named | {"task": task.task, "task_settings": task.settings}

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {"share": self.share, "sigma": str(self.sigmas), **self.what}


def own(config: Config) -> Condition:
    """What a configuration trains for, on all clips."""
    return Condition(
        1.0,
        degradations.build(config.task, **config.task_settings),
        noises.build(config.noise.kind, **config.noise.settings),
        parse_sigma(config.noise.sigma),
    )


def conditions_of(checkpoint: str) -> list[Condition]:
    """What a checkpoint was trained for: its last training's own noise, then what that one replayed of earlier ones.

    Raises:
        CheckpointError: it does not say, or what it was trained for cannot be made again.
        ConfigError: a kind of noise or a task that is not known here.
    """
    _, record = read(checkpoint)
    trained, config = record.get("trained") or {}, record.get("config") or {}
    if trained.get("kind") == RECORDED:
        raise CheckpointError(f"{checkpoint} was trained on recorded pairs, whose noise cannot be made again")
    noise = config.get("noise")
    if not noise:
        raise CheckpointError(f"{checkpoint} does not say which noise it was trained for")
    earlier = [_made(entry) for entry in trained.get("replayed", ())]
    newest = {
        "share": 1 - math.fsum(condition.share for condition in earlier),
        "sigma": noise["sigma"],
        "noise": noise["kind"],
        "noise_settings": noise.get("settings"),
        "task": config.get("task"),
        "task_settings": config.get("task_settings"),
    }
    return [_made(newest), *earlier]


def shared_out(conditions: Iterable[Condition], share: float) -> tuple[Condition, ...]:
    """Conditions for a part of the clips, in the proportions that they have."""
    return tuple(replace(condition, share=condition.share * share) for condition in conditions)


def _made(entry: dict[str, Any]) -> Condition:
    return Condition(
        float(entry["share"]),
        degradations.build(entry.get("task") or "denoise", **(entry.get("task_settings") or {})),
        noises.build(entry["noise"], **(entry.get("noise_settings") or {})),
        parse_sigma(entry["sigma"]),
    )
