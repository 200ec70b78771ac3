"""Networks by name: ``build("stan_tiny", blind=True)``."""

from __future__ import annotations

from typing import Any

from stan.models.base import VideoDenoiser
from stan.registry import networks

register = networks.register


def build(name: str, **settings: Any) -> VideoDenoiser:
    """Make the network `name` with fresh weights.

    Args:
        name: one of `names()`.
        settings: what differs from the network's defaults, see ``docs/models.md``.

    Raises:
        ConfigError: for an unknown name, an unknown setting or an impossible value.
    """
    return networks.build(name, **settings)


def names() -> list[str]:
    """Names of all networks."""
    return networks.names()
