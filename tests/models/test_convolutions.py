"""Convolutions that finish their own output, against the same done step by step in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stan.models.convolutions import conv, conv_3x3, conv_add, conv_relu, has_kernels


def layer_of(channels: int = 12) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, channels, 3, padding=1)


def pictures(order: torch.memory_format) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, other = (torch.randn(2, 12, 19, 23, generator=generator).contiguous(memory_format=order) for _ in "xy")
    return x, other


def exact(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    return F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("way", ["ours", "oneDNN", "step by step"])
def test_they_are_what_they_say(
    order: torch.memory_format, grad: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way != "ours":
        monkeypatch.setattr("stan.models.convolutions.suits", lambda x, weight: False)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: way == "oneDNN")
    layer, (x, other) = layer_of(), pictures(order)
    before = x.clone(), other.clone()
    with torch.set_grad_enabled(grad):
        plain = conv(layer, x), conv_3x3(x, layer.weight, layer.bias)
        activated, summed = conv_relu(layer, x), conv_add(layer, x, other)
    for found in plain:
        torch.testing.assert_close(found.double(), exact(layer, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(activated.double(), exact(layer, x).relu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed.double(), exact(layer, x) + other.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before[0])
    assert torch.equal(other, before[1])
    assert activated.requires_grad == grad


OTHERS: dict[str, dict[str, Any]] = {
    "stride": {"stride": 2, "padding": 1},
    "no border": {},
    "reflected border": {"padding": 1, "padding_mode": "reflect"},
    "border by name": {"padding": "same"},
    "dilation": {"padding": 1, "dilation": 2},
    "groups": {"padding": 1, "groups": 3},
    "without bias": {"padding": 1, "bias": False},
}


@pytest.mark.parametrize("kind", list(OTHERS))
def test_other_layers_are_computed_as_they_are(kind: str) -> None:
    torch.manual_seed(0)
    layer, (x, _) = nn.Conv2d(12, 6, 3, **OTHERS[kind]), pictures(torch.channels_last)
    expected = layer(x)
    with torch.no_grad():
        found = conv(layer, x), conv_add(layer, x, torch.ones_like(expected)) - 1
        activated = conv_relu(layer, x)
    for one in found:
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(activated, expected.relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kernels", [None, False])
def test_autocast_counts(
    grad: bool, dtype: torch.dtype, kernels: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short type out, within its rounding of the exact result, whether this CPU has kernels for it or not."""
    if kernels is not None:
        monkeypatch.setattr("stan.models.convolutions.has_kernels", lambda dtype: kernels)
    layer, (x, other) = layer_of(), pictures(torch.channels_last)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
        activated = conv_relu(layer, x)
        summed = conv_add(layer, activated, other.to(dtype))
    assert activated.dtype == summed.dtype == dtype
    torch.testing.assert_close(activated.double(), exact(layer, x).relu(), rtol=0.02, atol=0.02)
    inner = exact(layer, activated) + other.double()
    torch.testing.assert_close(summed.double(), inner, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_fused_is_what_onednn_takes(dtype: torch.dtype) -> None:
    """oneDNN refuses types that it has no kernels for on this CPU, with an error."""
    layer, x = layer_of().to(dtype), pictures(torch.channels_last)[0].to(dtype)
    operands = (x, layer.weight, layer.bias, [1, 1], [1, 1], [1, 1], 1, "relu", [], "")
    with torch.no_grad():
        if has_kernels(dtype):
            torch.ops.mkldnn._convolution_pointwise(*operands)
        else:
            with pytest.raises(RuntimeError):
                torch.ops.mkldnn._convolution_pointwise(*operands)


def test_an_exported_graph_holds_no_fused_operator() -> None:
    """It is for other machines too."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layer_of()

        def forward(self, x: Tensor) -> Tensor:
            return conv_add(self.conv, conv_relu(self.conv, x), x)

    x, _ = pictures(torch.contiguous_format)
    with torch.no_grad():
        graph = torch.export.export(Unit(), (x,))
    assert "mkldnn" not in str(graph)
    assert "stan.convolve" not in str(graph)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("side", [4, 20])  # too small for our kernel, and not
def test_forward_mode_is_not_dropped(grad: bool, side: int) -> None:
    """Neither our kernel nor oneDNN's fused forms have it, and torch would take it for zero."""
    layer, x = layer_of(), torch.randn(1, 12, side, side, generator=torch.Generator().manual_seed(2))
    inputs, tangents = (x, layer.weight.detach()), (x.cos(), layer.weight.detach().sin())

    def with_weight(function: Any) -> Any:
        return lambda x, weight: torch.func.functional_call(
            Calls(layer, function), {"layer.weight": weight}, x
        )

    plain = torch.func.jvp(with_weight(lambda layer, x: F.relu(layer(x)) + layer(x) + x), inputs, tangents)
    with torch.set_grad_enabled(grad):
        sum_of = with_weight(lambda layer, x: conv_relu(layer, x) + conv_add(layer, x, x))
        torch.testing.assert_close(torch.func.jvp(sum_of, inputs, tangents), plain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.func.jvp(lambda y: conv_add(layer, x, y), (x,), (x,))[1], x)


class Calls(nn.Module):
    """A function of a layer, as a module."""

    def __init__(self, layer: nn.Conv2d, function: Any) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)
