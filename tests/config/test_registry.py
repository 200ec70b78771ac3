"""Components and their settings, on tables made here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from stan import registry
from stan.config.printing import value_text
from stan.errors import ConfigError
from stan.registry import Registry
from stan.settings import ODD, Setting, above, at_least, below, between, length, settings_of, words

engines: Registry[Any] = Registry("engine", __name__)
cars: Registry[Any] = Registry("car", __name__, labels=("name",))


@engines.register("diesel")
class Diesel:
    """Burns oil. Loudly.

    Args:
        litres: size,
            in litres.
    """

    def __init__(self, fuel: str, *, litres: Annotated[float, between(0.5, 8)] = 2.0) -> None:
        self.fuel, self.litres = fuel, litres


@engines.register("electric")
class Electric:
    """Hums (Davenport et al. 1834). Quietly."""

    def __init__(self, fuel: str) -> None:
        self.fuel = fuel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A car.

    Attributes:
        wheels: how many.
        engine: what moves it.
        engine_settings: its settings.
    """

    wheels: Annotated[int, at_least(3)] = 4
    engine: Annotated[str, engines] | Literal["none"] = "diesel"
    engine_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.wheels > 4 and self.engine == "electric":
            raise ConfigError("too heavy")


@cars.register("family", declares=Plan)
def family(**settings: Any) -> Plan:
    """Four seats."""
    return Plan(**settings)


@cars.register("kart", declares=Plan, preset={"wheels": 3, "engine": "electric"})
def kart(**settings: Any) -> Plan:
    """One seat."""
    return Plan(**settings)


def refusal(*given: Any, table: Registry[Any] = cars, prefix: str = "") -> str:
    name, settings = given
    with pytest.raises(ConfigError) as caught:
        table.complete(name, settings, prefix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_are_the_keyword_only_arguments() -> None:
    (litres,) = settings_of(Diesel).values()
    assert (litres.name, litres.default, litres.help) == ("litres", 2.0, "size, in litres")
    assert words(litres.type) == "a number from 0.5 to 8"
    assert not settings_of(Electric)
    assert [engines.component(name).summary for name in engines] == [
        "Burns oil",
        "Hums (Davenport et al. 1834)",
    ]


def test_a_component_is_given_its_arguments_and_all_settings() -> None:
    built = engines.build("diesel", "oil", litres=3)
    assert (built.fuel, built.litres) == ("oil", 3.0)
    assert isinstance(built.litres, float)
    assert engines.bind("diesel", litres=1)("oil").litres == 1.0


def test_presets_share_a_declaration() -> None:
    assert cars.complete("family", {}) == {
        "wheels": 4,
        "engine": "diesel",
        "engine_settings": {"litres": 2.0},
    }
    assert cars.complete("kart", {}) == {"wheels": 3, "engine": "electric", "engine_settings": {}}
    assert cars.complete("kart", {"engine": "diesel"})["engine_settings"] == {"litres": 2.0}
    assert cars.settings("kart")["wheels"].default == 3
    assert cars.complete("family", {"engine": "none"})["engine_settings"] == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("famly", {}), "car 'famly' is not known; did you mean 'family'?"),
        (("family", {"wheel": 3}), "car 'family' has no setting 'wheel' (=3); did you mean 'wheels'?"),
        (("family", {"wheels": 2}), "car 'family': wheels=2 should be a whole number of at least 3"),
        (("family", {"engine": "disel"}), "car 'family': engine='disel' is not known; did you mean 'diesel'?"),
        (("family", {"engine_settings": {"litre": 1}}), "engine 'diesel' has no setting 'litre' (=1); did you mean"),
        (("family", {"engine_settings": {"litres": 9}}), "'family': engine_settings.litres=9 should be a number from"),
        (("kart", {"engine_settings": {"litres": 1}}), "engine 'electric' has no setting 'litres' (=1); known: none"),
        (("family", {"engine": "none", "engine_settings": {"litres": 1}}), "engine='none' has no settings"),
        (("kart", {"wheels": 6}), "too heavy"),
    ],
)  # fmt: skip
def test_refusals(given: tuple[str, dict[str, Any]], said: str) -> None:
    assert said in refusal(*given)


def test_refusals_name_the_key_of_the_configuration() -> None:
    line = refusal("family", {"engine_settings": {"litres": 9}}, prefix="car.settings.")
    assert line.startswith("car.settings.engine_settings.litres=9 ")


def test_a_name_is_taken_once_and_written_on_the_class() -> None:
    table: Registry[Any] = Registry("thing", __name__, labels=("name",))

    @table.register("one")
    class One:
        name = "other"

    assert One.name == "one"
    with pytest.raises(ValueError, match="'one' is registered twice"):
        table.register("one")(One)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3, "12"], [True, 1.0, "x", None, 1 << 70, [1]]),
        (float, [1, 0.5, "1e-3"], [True, float("nan"), float("inf"), "nan", "", 10**400]),
        (bool, [True, "true"], [1, 0, "yes", None]),
        (str, ["", "x", 2024], [True, None, ["x"]]),
        (list[int], [[1, 2], [], 3], [None, ["a"], {"a": 1}]),
        (tuple[int, int], [[1, 2], (3, 4)], [[1], 1, "ab", [1, 2, 3]]),
        (Annotated[list[Annotated[float, below(0, 1)]], length(2)], [[0, 0.9]], [[0, 1], [0.5], [2, 2]]),
        (Annotated[int, ODD], [1, 7], [0, 2, -1]),
        (Annotated[float, above(0)], [1e-9], [0, -1]),
        (Literal[5, 7, "no"], [5, "no"], [6, 5.0, "5", True]),
        (Annotated[int, at_least(1)] | None, [None, 1], [0, "none"]),
        (dict[str, Any], [{}, {"a": 1}], [None, [1], "a"]),
    ],
)
def test_values_of_types(hint: Any, good: list[Any], bad: list[Any]) -> None:
    setting = Setting("value", hint, None, "")
    for value in good:
        setting.checked(value)
    for value in bad:
        with pytest.raises(ConfigError, match=r"^value="):
            setting.checked(value)


@pytest.mark.parametrize("table", [name for name, t in vars(registry).items() if isinstance(t, Registry)])
def test_every_part_of_this_package_says_what_it_is_and_helps_with_each_setting(table: str) -> None:
    entries = getattr(registry, table)
    names = list(entries)
    assert names
    for name in names:
        assert entries.component(name).summary, name
        for setting in entries.settings(name).values():
            assert setting.help, f"{name}.{setting.name}"
            assert words(setting.type) != "a value", f"{name}.{setting.name} has no type"


@pytest.mark.parametrize(
    "value", [None, True, 1, 1e-7, -2.5, "x", "0..50", "null", "1e5", "a: b", "[1", "#", "ü", "", ["a", "1"]]
)
def test_values_read_back_as_they_are_printed(value: object) -> None:
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.create(f"x: {value_text(value)}")) == {"x": value}
