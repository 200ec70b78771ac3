"""Larger networks that begin as trained smaller ones: function-preserving growth (Net2Net, arXiv 1511.05641).

The weights of the small network are a corner of the large one's. What is new computes something from the first step on,
and what was there does not listen to it yet: the weights from new channels to old ones are zero, and so is the end of
each new residual unit. The large network computes what the small one does, and training goes on from there.

A level may also have fewer units than before: what is left computes what the small network without its last units does,
which training mends. So parameters can move from one level to another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stan.errors import ConfigError
from stan.models.base import VideoDenoiser
from stan.models.registry import build
from stan.models.two_pass import TwoPass, TwoPassSettings
from stan.models.unet import Unit
from stan.registry import networks


def grown(
    network: VideoDenoiser,
    *,
    seed: int,
    name: str | None = None,
    channels: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    temporal_window: int | None = None,
) -> TwoPass:
    """A larger two-pass network that computes what a trained one does, but for units that are left out.

    Args:
        network: one of two passes, as `stan_tiny`; it stays as it is.
        seed: of the new weights.
        name: of the registry; None keeps the network's own.
        channels: of each level of the large network, no fewer than the network has; None takes what `name` brings, or
            the network's own.
        depths: units of each level. Where they become fewer, the last ones are left out; None as for `channels`.
        temporal_window: frames merged each side, any number: no weight depends on it; None as for `channels`.

    Raises:
        ConfigError: a network of another kind, or one that would shrink.
    """
    if not isinstance(network, TwoPass):
        raise ConfigError(
            f"network {network.name!r} cannot grow: only networks of two passes can, as stan_tiny"
        )
    preset = networks.settings(name) if name is not None else {}
    if name is not None and networks.component(name).declares is not TwoPassSettings:
        raise ConfigError(f"network {network.name!r} cannot grow into {name!r}, which is of another kind")
    wanted = dict(network.settings)
    for key, given in (("channels", channels), ("depths", depths), ("temporal_window", temporal_window)):
        if given is not None or key in preset:
            wanted[key] = preset[key].default if given is None else given
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        large = build(name or network.name, **wanted)
    assert isinstance(large, TwoPass)
    before, after = network.settings["channels"], large.settings["channels"]
    if len(before) != len(after) or any(b > a for b, a in zip(before, after)):
        raise ConfigError(
            f"network {network.name!r} cannot grow to channels={list(after)}: it has {list(before)}, which may but "
            "become more at each level"
        )
    _embed(network, large)
    large.trained = network.trained
    return large.train(network.training)


@torch.no_grad()
def _embed(small: nn.Module, large: nn.Module) -> None:
    """Make `large` compute what `small` does with the units that both have."""
    known = dict(small.named_modules())
    for path, module in large.named_modules():
        if path not in known:
            if isinstance(module, Unit):  # a new one: it adds nothing yet
                for parameter in module.second.parameters():
                    parameter.zero_()
            continue
        for key, value in module.named_parameters(recurse=False):
            _corner(value, known[path].get_parameter(key), transposed=isinstance(module, nn.ConvTranspose2d))


def _corner(into: Tensor, known: Tensor, *, transposed: bool) -> None:
    """Put a parameter into the corner of a larger one; what leads from new channels to known ones is zero."""
    if known.ndim > 1:
        rows, columns = known.shape[:2]
        if transposed:  # (in, out, ...)
            into[rows:, :columns] = 0
        else:  # (out, in, ...)
            into[:rows, columns:] = 0
    into[tuple(slice(side) for side in known.shape)] = known
