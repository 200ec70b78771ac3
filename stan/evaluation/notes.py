"""What a reader of the figures should know before believing them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stan.data import open_clips
from stan.errors import StanError
from stan.evaluation.methods import Network
from stan.evaluation.plan import Plan
from stan.models.checkpoint import read


def notes_of(plan: Plan) -> Iterator[str]:
    """One line for each thing about an evaluation that a reader of its figures should know."""
    if plan.departures:
        yield f"departs from protocol {plan.protocol.name}: " + "; ".join(plan.departures)
    if plan.recorded:
        told = any(isinstance(m, Network) and not m.model.blind and not m.find_level for m in plan.methods)
        words = f"networks are told sigma {plan.sigmas[0]:g} (noise.sigma); " if told else ""
        yield f"the noise is recorded: {words}its level is estimated as {plan.estimated_levels}"
    for method in plan.methods:
        if isinstance(method, Network):
            yield from _network_notes(plan, method)


def _network_notes(plan: Plan, method: Network) -> Iterator[str]:
    trained = method.model.trained
    if trained is None:
        yield f"{method.name}: the checkpoint does not say what it was trained for"
    else:
        outside = [f"{s:g}" for s in plan.sigmas if not trained.low <= s <= trained.high]
        if outside:
            yield f"{method.name}: trained for sigma {trained.levels}, evaluated at {', '.join(outside)} too"
        task = plan.degradation.task
        if trained.task != task:
            yield (
                f"{method.name}: trained for task {trained.task_words}, evaluated on {task}; say task={trained.task} "
                "for its own"
            )
        elif trained.scale != plan.degradation.scale:
            yield (
                f"{method.name}: trained for {trained.task_words}, evaluated on video enlarged "
                f"{plan.degradation.scale} times"
            )
        if trained.kind != plan.noise_kind:
            yield f"{method.name}: trained for {trained.kind} noise, evaluated on {plan.noise_kind}"
    config = read(method.path)[1].get("config")
    data = config.get("data") if isinstance(config, dict) else None
    seen = _seen_in_training(plan, data) if isinstance(data, dict) else []
    if seen:
        yield (
            f"{method.name}: trained on {len(seen)} of these {len(plan.clips)} sequences "
            f"({', '.join(seen[:4])}{', ...' if len(seen) > 4 else ''}); "
            "those figures do not show how it does on new video"
        )


def _seen_in_training(plan: Plan, data: dict[str, Any]) -> list[str]:
    """Sequences of the evaluation that were in the training data, as far as split lists that are here can tell."""
    parts = data.get("parts") or [{}]  # a mixture: each part departs from the whole
    trained = {name for part in parts if isinstance(part, dict) for name in _names(plan, {**data, **part})}
    return [clip.name for clip in plan.clips if clip.name in trained]


def _names(plan: Plan, data: dict[str, Any]) -> set[str]:
    """The sequences of a data set that was trained on, if it is the one that is evaluated on."""
    ours = plan.config.data
    if data.get("kind") != ours.kind:
        return set()
    split = data.get("split")
    same_root = Path(str(data.get("root"))).resolve() == Path(ours.root).resolve()
    if not same_root and (
        ours.kind != "davis" or not split
    ):  # names tell sequences apart within one data set
        return set()
    try:
        return {clip.name for clip in open_clips(ours.kind, ours.root, split, ours.noisy)}
    except StanError:
        return set()
