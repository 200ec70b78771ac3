"""All parts that are chosen by name: networks, attention variants, noise kinds, losses and so on.

A part enters its table where it is written, and declares its settings there (see `stan.settings`)::

    from stan.registry import losses

    @losses.register("huber")
    def huber(denoised, clean, *, delta: Annotated[float, above(0)] = 0.1): ...

Whoever offers a choice asks the table: configuration checks, messages, printed configurations and the documentation
hold no list of names of their own. A table imports the module that fills it when it is first asked, so that this
module needs none of them. `stan.imports` brings in the modules of users, which register in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from stan.errors import ConfigError, nearest, short
from stan.settings import Setting, complete, settings_of

if TYPE_CHECKING:
    from torch import nn

    from stan.data.degradation import Degradation
    from stan.data.noise import Noise
    from stan.data.sources import Opener
    from stan.evaluation.methods import Method
    from stan.evaluation.protocols import Protocol
    from stan.experiments.frame import Experiment
    from stan.flow import OffsetSource
    from stan.losses import Loss
    from stan.metrics import Metric
    from stan.models import VideoDenoiser
    from stan.models.attention import Alignment

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Component:
    """An entry of a registry.

    Attributes:
        factory: the class or function, or the record itself of a table of records.
        declares: the function or class whose keyword-only arguments are the settings.
        preset: defaults in place of the declared ones.
        summary: what it is, in a few words.
    """

    factory: Any
    declares: Callable[..., Any] | None
    preset: Mapping[str, Any]
    summary: str


class Registry(Mapping[str, Any], Generic[T]):
    """A table of components by name; in the order of their registration.

    Args:
        kind: what the entries are, for messages ("loss").
        home: the module that registers those of this package.
        labels: class attributes that receive the name under which a class is registered.
    """

    def __init__(self, kind: str, home: str, labels: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.home = home
        self.labels = labels
        self._components: dict[str, Component] = {}

    def register(
        self,
        name: str,
        *,
        declares: Callable[..., Any] | None = None,
        preset: Mapping[str, Any] | None = None,
    ) -> Callable[[F], F]:
        """Decorator: enter a class or function under `name`.

        Args:
            declares: whose keyword-only arguments (or fields) are the settings; None: those of the entry itself.
            preset: defaults in place of the declared ones: several names may share one declaration.

        Raises:
            ValueError: the name is taken.
        """

        def enter(factory: F) -> F:
            for label in self.labels if inspect.isclass(factory) else ():
                setattr(factory, label, name)
            summary = _first_sentence(factory.__doc__)
            self._enter(name, Component(factory, declares or factory, preset or {}, summary))
            return factory

        return enter

    def add(self, name: str, record: T, summary: str) -> None:
        """Enter a record, which has no settings, under `name`; `summary` says what it is."""
        self._enter(name, Component(record, None, {}, summary))

    def component(self, name: str) -> Component:
        """The entry `name`.

        Raises:
            ConfigError: for an unknown name; the message holds the nearest known one.
        """
        if name not in self:
            raise ConfigError(f"{self.kind} {short(name)} is not known; {nearest(name, self)}")
        return self._components[name]

    def settings(self, name: str) -> dict[str, Setting]:
        """The declared settings of the entry `name`, with its defaults."""
        entry = self.component(name)
        found = settings_of(entry.declares) if entry.declares else {}
        return {
            key: dataclasses.replace(setting, default=entry.preset.get(key, setting.default))
            for key, setting in found.items()
        }

    def complete(self, name: str, given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """All settings of the entry `name`: those given, checked, and its defaults for the others.

        Args:
            prefix: goes before the name of a setting in messages.

        Raises:
            ConfigError: an unknown name or setting, a value out of bounds, or a combination that cannot work.
        """
        entry = self.component(name)
        if entry.declares is None:
            return {}
        owner = f"{self.kind} {name!r}"
        values = complete(entry.declares, given, owner, prefix=prefix, preset=entry.preset)
        if dataclasses.is_dataclass(entry.declares):
            entry.declares(**values)  # it checks combinations
        return values

    def build(self, name: str, *given: Any, **settings: Any) -> T:
        """Make the entry `name`.

        Args:
            given: positional arguments that every entry of this table takes.
            settings: what differs from its defaults.

        Raises:
            ConfigError: see `complete`.
        """
        made: T = self.component(name).factory(*given, **self.complete(name, settings))
        return made

    def bind(self, name: str, **settings: Any) -> T:
        """The function entered as `name` with its settings filled in.

        Raises:
            ConfigError: see `complete`.
        """
        bound: Any = functools.partial(self.component(name).factory, **self.complete(name, settings))
        return bound

    def names(self) -> list[str]:
        """All names."""
        return list(self)

    def __getitem__(self, name: str) -> Any:
        return self._loaded()[name].factory

    def __contains__(self, name: object) -> bool:
        return name in self._loaded()

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def _enter(self, name: str, entry: Component) -> None:
        if name in self._loaded():
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._components[name] = entry

    def _loaded(self) -> dict[str, Component]:
        if self.home not in sys.modules:
            importlib.import_module(self.home)
        return self._components


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    return re.split(r"(?<! al)\. ", paragraph)[0].rstrip(".")


networks: Registry[VideoDenoiser] = Registry("model", "stan.models")
alignments: Registry[Alignment] = Registry("attention variant", "stan.models.attention")
aggregations: Registry[nn.Module] = Registry("aggregation", "stan.models.aggregation")
sources: Registry[OffsetSource] = Registry("offset source", "stan.flow", labels=("name",))
noises: Registry[Noise] = Registry("noise kind", "stan.data.noise", labels=("kind",))
tasks: Registry[Degradation] = Registry("task", "stan.data.degradation", labels=("task",))
layouts: Registry[Opener] = Registry("data kind", "stan.data.sources")
losses: Registry[Loss] = Registry("loss", "stan.losses")
metrics: Registry[Metric] = Registry("metric", "stan.metrics")
protocols: Registry[Protocol] = Registry("protocol", "stan.evaluation.protocols")
baselines: Registry[Method] = Registry("baseline", "stan.evaluation.methods", labels=("name", "word"))
experiments: Registry[Experiment] = Registry("experiment", "stan.experiments.kinds")
