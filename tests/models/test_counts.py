"""Parameter counts of the network page, exactly. A PReLU slope a residual unit is not counted there."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import stan.config
import stan.models


def count(module: nn.Module) -> int:
    """Parameters of a module, without the slopes of its PReLUs."""
    slopes = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.PReLU))
    return sum(p.numel() for p in module.parameters()) - slopes


def test_paper_network() -> None:
    model = stan.models.build("stan")
    assert isinstance(model, stan.models.Stan)
    assert count(model) == 12_073_837
    assert sum(p.numel() for p in model.parameters()) == 12_073_837 + 17
    assert count(model.encoders[-1]) == 9_886_296


def test_paper_network_with_small_aggregation() -> None:
    model = stan.models.build("stan", aggregation_kernel=1)
    assert isinstance(model, stan.models.Stan)
    assert count(model) == pytest.approx(10.11e6, rel=0.005)
    block = model.encoders[-1].blocks[0]
    assert count(block) == 1_814_070
    assert count(block.mixer) == 1_603_440


def test_blind_network_lacks_the_noise_map_alone() -> None:
    told, blind = stan.models.build("stan"), stan.models.build("stan", blind=True)
    assert count(told) - count(blind) == 9 * 16


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("family", ["stan", "unet"])
def test_small_networks(family: str, size: str) -> None:
    most = {"small": 4_000_000, "tiny": 600_000}[size]
    assert sum(p.numel() for p in stan.models.build(f"{family}_{size}").parameters()) <= most


@pytest.mark.parametrize("name", stan.models.names())
def test_model_configuration_comes_to_the_networks_own_defaults(name: str) -> None:
    path = Path(__file__).parents[2] / "configs" / "model" / f"{name}.yaml"
    model = stan.config.load(path).model
    assert model.name == name
    assert model.given == stan.models.build(name).settings
