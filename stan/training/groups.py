"""Parameter groups with rates of their own, and optimiser states that follow the parameters by name."""

from __future__ import annotations

import fnmatch
from typing import Any

import torch
from torch import nn

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

    Args:
        state: a state dict of AdamW.
        optimizer: who shall load the result.
        names: its parameters, in the order of its groups.
        names_then: the parameters of `state`, in the order of that one's groups.
    """
    places = {name: place for place, name in enumerate(names_then)}
    moments = {
        place: state["state"][places[name]]
        for place, name in enumerate(names)
        if name in places and places[name] in state["state"]
    }
    return {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
