"""Losses, schedule and moving average against formulas written out here."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from stan import losses
from stan.config import load
from stan.errors import ConfigError
from stan.training.ema import moving_average
from stan.training.fit import build_network
from stan.training.module import DenoisingModule
from stan.training.optimizer import learning_rate_factor


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 2, 3, 8, 9, generator=generator), torch.rand(3, 2, 3, 8, 9, generator=generator)


def test_losses_are_their_formulas(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    difference = (pair[0] - pair[1]).double().numpy()
    expected = {
        "l1": np.abs(difference).mean(),
        "l2": (difference**2).mean(),
        "charbonnier": np.sqrt(difference**2 + 1e-6).mean(),
        "rmse": np.sqrt((difference**2).mean() + 1e-6),
        "psnr": -np.mean(
            [peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1) for a, b in zip(*pair, strict=True)]
        ),
    }
    for name, value in expected.items():
        assert float(losses.build(name)(*pair)) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("name", ["charbonnier", "rmse", "l1", "l2", "psnr"])
def test_losses_have_finite_gradients_at_a_perfect_result(name: str) -> None:
    same = torch.full((1, 1, 3, 4, 4), 0.5, requires_grad=True)
    losses.build(name)(same, same.detach()).backward()
    assert torch.isfinite(same.grad).all()


def test_unknown_loss() -> None:
    with pytest.raises(ConfigError, match="'huber'"):
        losses.build("huber")


@settings(deadline=None, derandomize=True)
@given(
    total=st.integers(2, 1000),
    warmup=st.integers(0, 100),
    final=st.floats(0, 1),
    cosine=st.booleans(),
)
def test_schedule_rises_then_never_rises_again(total: int, warmup: int, final: float, cosine: bool) -> None:
    warmup = min(warmup, total - 1)
    factors = [
        learning_rate_factor(step, total=total, warmup=warmup, final=final, cosine=cosine)
        for step in range(total + 1)
    ]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    assert factors[0] > 0
    assert all(a < b for a, b in pairwise(factors[: warmup + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[warmup:]))
    assert factors[warmup] == 1
    assert factors[total] == pytest.approx(final if cosine else 1)


def test_schedule_is_half_a_cosine() -> None:
    middle = learning_rate_factor(60, total=100, warmup=20, final=0.2, cosine=True)
    assert middle == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_moving_average_is_the_recurrence() -> None:
    model = nn.Linear(3, 2)
    average = moving_average(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model.weight += 0.1 * math.sin(step)
        average.update_parameters(model)
        # torch's AveragedModel copies at its first call and averages from the second on
        keep = min(0.9, (1 + step) / (10 + step)) if step else 0.0
        expected = keep * expected + (1 - keep) * model.weight.detach()
    torch.testing.assert_close(average.module.weight, expected)
    assert not average.module.weight.requires_grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_optimiser_is_adamw(layout: torch.memory_format) -> None:
    """Its formulas (Loshchilov and Hutter, ICLR 2019), whether or not it changes whole tensors in one pass."""
    config = load("train/demo.yaml", ["optimizer.weight_decay=0.1", "optimizer.warmup_steps=0"])
    network = build_network(config).to(memory_format=layout)
    module = DenoisingModule(network, config)
    optimizer = module.configure_optimizers()["optimizer"]
    (group,) = optimizer.param_groups
    assert bool(group["fused"]) == (layout == torch.contiguous_format)  # it looks at no layout
    generator = torch.Generator().manual_seed(0)
    weight = network.clean.enter.weight
    w, m, v = weight.detach().double().clone(), 0.0, 0.0
    (first, second), rate = group["betas"], group["lr"]
    for step in range(1, 4):
        gradient = torch.randn(weight.shape, generator=generator)
        weight.grad = gradient.clone(memory_format=torch.contiguous_format).to(memory_format=layout)
        optimizer.step()
        g = gradient.double()
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g**2
        w = w - rate * 0.1 * w
        w = w - rate * (m / (1 - first**step)) / ((v / (1 - second**step)).sqrt() + 1e-8)
        assert torch.allclose(weight.detach().double(), w, atol=1e-6)
