"""A table of named factories: offset sources here, networks in `stan.models`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from stan.errors import ConfigError, nearest

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Factories by name.

    Args:
        kind: what the entries are, for messages ("model", "offset source").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator: enter a class or function, whose keyword arguments are its settings, under `name`."""

        def enter(factory: F) -> F:
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._factories[name] = factory
            return factory

        return enter

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._factories)

    def build(self, name: str, **settings: Any) -> T:
        """Make the entry `name` with `settings`.

        Raises:
            ConfigError: for an unknown name or setting; the message holds the nearest valid one.
        """
        if name not in self._factories:
            raise ConfigError(f"{self.kind} {name!r} is not known; {nearest(name, self.names())}")
        factory = self._factories[name]
        parameters = inspect.signature(factory).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key in settings:
                if key not in parameters:
                    raise ConfigError(
                        f"{self.kind} {name!r} has no setting {key!r}; {nearest(key, parameters)}"
                    )
        return factory(**settings)
