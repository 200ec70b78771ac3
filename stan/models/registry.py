"""Networks by name: ``build("stan_tiny", blind=True)``."""

from __future__ import annotations

from typing import Any

from stan.flow.registry import Registry
from stan.models.base import VideoDenoiser

models: Registry[VideoDenoiser] = Registry("model")
register = models.register


def build(name: str, **settings: Any) -> VideoDenoiser:
    """Make the network `name` with fresh weights.

    Args:
        name: one of `names()`.
        settings: what differs from the network's defaults, see ``docs/models.md``.

    Raises:
        ConfigError: for an unknown name, an unknown setting or an impossible value.
    """
    return models.build(name, **settings)


def names() -> list[str]:
    """Names of all networks."""
    return models.names()
