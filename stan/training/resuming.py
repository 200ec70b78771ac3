"""Going on with a training under other settings: what is applied, what is told, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stan.config import Config, to_dict
from stan.config.schema import Resumed, on_resuming
from stan.errors import CheckpointError, short
from stan.models import VideoDenoiser
from stan.models.checkpoint import holds_training, load_weights, read
from stan.training.checkpoints import BEST, LAST

ON_RESUMING = dict(on_resuming())


@dataclass(frozen=True)
class Start:
    """How a run begins.

    Attributes:
        path: the checkpoint to go on from; None: afresh.
        step: its optimiser steps.
        changed: settings that hold from here on, key -> (before, now); those that are told.
        new_validation: whether validations before and after cannot be compared.
        starts: the record of this and all earlier starts.
    """

    path: Path | None = None
    step: int = 0
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    new_validation: bool = False
    starts: list[dict[str, Any]] = field(default_factory=list)


def what_happens(key: str) -> Resumed:
    """What a resumed run does with a changed key, or with one inside a key that holds a section."""
    while key not in ON_RESUMING:
        key = key.rpartition(".")[0]
    return ON_RESUMING[key]


def plan_start(config: Config, network: VideoDenoiser) -> Start:
    """Where a run begins, by ``config.resume``. Writes nothing.

    Raises:
        CheckpointError: a checkpoint that is missing, damaged, of another network, or a change that is refused.
    """
    path = Path(config.output) / LAST if config.resume == "auto" else Path(config.resume)
    if config.resume == "never" or (config.resume == "auto" and not path.exists()):
        return Start(starts=[{"step": 0, "changed": {}}])
    try:
        weights, record = read(path)
    except CheckpointError as error:
        best = path.parent / BEST
        other = f"go on from resume={best}, or " if best.exists() and best != path else ""
        raise CheckpointError(f"{error}; {other}start over with resume=never") from error
    if not holds_training(path):
        raise CheckpointError(
            f"{path} holds weights alone, not the state of a training that could go on: start from them with "
            f"stan finetune checkpoint={path}, or afresh with resume=never"
        )
    way_out = "choose another output folder, or resume=never to start over"
    name, settings = record["model"]["name"], record["model"].get("settings") or {}
    if name != network.name:
        raise CheckpointError(
            f"{path} holds the network {name!r}, but model.name is {network.name!r}: {way_out}"
        )
    for key, value in network.settings.items():
        if key in settings and _plain(settings[key]) != _plain(value):
            raise CheckpointError(
                f"{path} holds a network with {key}={short(settings[key])}, but model.settings.{key} is "
                f"{short(value)}: {way_out}"
            )
    load_weights(network, weights, str(path))  # of the same shape throughout, or refused
    step = int(record["trained"]["steps"]) if record.get("trained") else 0
    changes = changed(record.get("config") or {}, to_dict(config))
    told = {key: values for key, values in changes.items() if what_happens(key) is not Resumed.APPLIED}
    starts = [
        *record.get("starts", []),
        {"step": step, "changed": {key: list(values) for key, values in told.items()}},
    ]
    return Start(path, step, told, any(what_happens(key) is Resumed.MEASURED for key in changes), starts)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys that both have with other values, as (before, now); what is refused is compared elsewhere."""
    then, since = _flat(before), _flat(now)
    return {
        key: (then[key], value)
        for key, value in since.items()
        if key in then and what_happens(key) is not Resumed.REFUSED and then[key] != value
    }


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": _plain(leaf) for inner, leaf in value.items()})
        else:
            flat[key] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    """As it reads back from a file: tuples are lists."""
    return json.loads(json.dumps(value))
