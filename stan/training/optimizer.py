"""What belongs to the optimiser: groups with rates of their own, its state by name, the schedule."""

from __future__ import annotations

import fnmatch
import math
from typing import Any

import torch
from torch import nn

from stan.config.schema import OptimizerConfig
from stan.errors import ConfigError


def named_groups(
    model: nn.Module, rates: dict[str, float], lr: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The groups of an optimiser, and the names of their parameters in the order of its state.

    Args:
        model: the network.
        rates: factors on `lr` by name patterns; the first that matches counts, the others have 1.
        lr: peak learning rate.

    Raises:
        ConfigError: for a pattern that matches no parameter, or one that an earlier one has taken.
    """
    named = dict(model.named_parameters())
    left = list(named)
    groups: list[dict[str, Any]] = []
    order: list[str] = []
    for pattern, factor in [*rates.items(), ("*", 1.0)]:
        names = fnmatch.filter(left, pattern)
        if pattern in rates and not names:
            parts = ", ".join(sorted({name.split(".")[0] for name in named}))
            raise ConfigError(
                f"optimizer.rates: {pattern!r} matches no parameter that is left; the parts are {parts}, each with "
                ".* behind it"
            )
        if names:
            groups.append({"params": [named[name] for name in names], "lr": lr * factor})
        order += names
        left = [name for name in left if name not in set(names)]
    return groups, order


def fitted_state(
    state: dict[str, Any], optimizer: torch.optim.Optimizer, names: list[str], names_then: list[str]
) -> dict[str, Any]:
    """The moments of an optimiser's state for another one, parameter by parameter; its groups and rates stay.

    A parameter that is new or has grown begins without: AdamW would not look at shapes, and read beyond the old ones.

    Args:
        state: a state dict of AdamW.
        optimizer: who shall load the result.
        names: its parameters, in the order of its groups.
        names_then: the parameters of `state`, in the order of that one's groups.
    """
    then = {name: state["state"].get(place) for place, name in enumerate(names_then)}
    now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        place: then[name]
        for place, (name, parameter) in enumerate(zip(names, now))
        if then.get(name) is not None and then[name]["exp_avg"].shape == parameter.shape
    }
    return {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}


def learning_rate_factor(step: int, *, total: int, warmup: int, final: float, cosine: bool) -> float:
    """The factor on the peak learning rate at a step (counted from 0).

    Args:
        step: optimiser steps done.
        total: steps of the whole training.
        warmup: steps of linear rise; step 0 gets 1/(warmup+1), so that no step is wasted at zero.
        final: learning rate at the end as a fraction of the peak.
        cosine: half a cosine from the peak to ``final`` after the warm-up; else constant at the peak.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if not cosine:
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def rate_factor(options: OptimizerConfig, step: int, total: int) -> float:
    """`learning_rate_factor` of a configuration."""
    return learning_rate_factor(
        step,
        total=total,
        warmup=options.warmup_steps,
        final=options.final_lr / options.lr if options.lr else 0.0,
        cosine=options.schedule == "cosine",
    )
