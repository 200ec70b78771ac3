"""3x3 convolutions in our own kernel, against torch's in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stan.ops import backend, library
from stan.ops.convolution import convolve, suits

pytestmark = pytest.mark.skipif(bool(backend.why_not_native()), reason="the native kernels are not built")

Arguments = dict[str, Tensor | None]
side = st.integers(1, 30)
channels = st.integers(1, 70)


def drawn(n: int, inputs: int, outputs: int, height: int, width: int) -> dict[str, Tensor]:
    """Arguments of a convolution whose results are near 1."""
    generator = torch.Generator().manual_seed(n + inputs + outputs + height + width)
    shapes = {"x": (n, inputs, height, width), "weight": (outputs, inputs, 3, 3), "bias": (outputs,)}
    shapes["add"] = n, outputs, height, width
    result = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    result["weight"] /= 3 * inputs**0.5
    return result


def exact(t: Arguments, relu: bool) -> Tensor:
    """The same in float64 by torch."""
    x, weight, bias, add = (None if v is None else v.double() for v in t.values())
    assert x is not None
    assert weight is not None
    out = F.conv2d(x, weight, bias, padding=1)
    out = out if add is None else out + add
    return out.relu() if relu else out


def near(found: Tensor, truth: Tensor) -> None:
    """Within the rounding of sums of float32, which grows with the largest of them."""
    assert found.shape == truth.shape
    scale = max(1.0, truth.abs().max().item())
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=3e-5 * scale)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3), inputs=channels, outputs=channels, height=side, width=side,
    bias=st.booleans(), add=st.booleans(), relu=st.booleans(), order=st.booleans(),
)  # fmt: skip
@example(n=2, inputs=3, outputs=9, height=64, width=5, bias=True, add=True, relu=False, order=True)
@example(n=1, inputs=1, outputs=1, height=1, width=1, bias=False, add=False, relu=False, order=True)
@example(n=2, inputs=88, outputs=88, height=9, width=33, bias=True, add=True, relu=True, order=True)
@example(n=1, inputs=150, outputs=180, height=19, width=33, bias=True, add=False, relu=True, order=True)
def test_it_and_its_gradients_are_those_of_the_sum(
    n: int, inputs: int, outputs: int, height: int, width: int, bias: bool, add: bool, relu: bool, order: bool
) -> None:
    t: Arguments = dict(drawn(n, inputs, outputs, height, width))
    if order:
        t = {
            name: v if v is None or v.dim() < 4 else v.contiguous(memory_format=torch.channels_last)
            for name, v in t.items()
        }
    t |= {name: None for name, wanted in (("bias", bias), ("add", add)) if not wanted}
    leaves = {name: None if v is None else v.requires_grad_() for name, v in t.items()}
    found, truth = convolve(**leaves, relu=relu), exact(leaves, relu)  # type: ignore[arg-type]
    near(found, truth)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(convolve(**leaves, relu=relu), found)  # type: ignore[arg-type]
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    if relu:
        slope = slope * (
            truth.abs() > 1e-3
        )  # where rounding does not decide which side of the bend a sum is on
    given_leaves = [v for v in leaves.values() if v is not None]
    gradients = torch.autograd.grad(found, given_leaves, slope)
    for gradient, wanted in zip(gradients, torch.autograd.grad(truth, given_leaves, slope.double())):
        near(gradient, wanted.double())


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    t = drawn(5, 13, 11, 22, 19)
    together = convolve(**t, relu=True)
    for k in range(5):
        alone = convolve(t["x"][k : k + 1], t["weight"], t["bias"], add=t["add"][k : k + 1], relu=True)
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_seen(value: float) -> None:
    """ReLU does not hide it, and it reaches no further than the tiles that read it."""
    t = drawn(1, 8, 8, 40, 40)
    t["x"][0, 3, 20, 21] = value
    found = convolve(t["x"], t["weight"], t["bias"], relu=True)[0]
    assert not found[:, 19:22, 20:23].isfinite().any()
    assert found[:, :16].isfinite().all()
    assert found[:, 28:].isfinite().all()


@pytest.mark.skipif(library.CAPABILITY == "generic", reason="this processor takes torch's convolutions")
def test_where_it_is_used() -> None:
    x, weight = torch.zeros(1, 16, 20, 20), torch.zeros(24, 16, 3, 3)
    assert suits(x, weight)
    assert not suits(x[:, :, :3, :3], weight)
    assert not suits(x.double(), weight.double())
    assert not suits(x.to("meta"), weight.to("meta"))
    assert not suits(x, weight[:, :, :2, :2])


WRONG: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "input: expected float32, got float64": lambda t: {"x": t["x"].double()},
    "input: expected 1 to .* in dimension 2": lambda t: {"x": t["x"][..., :0]},
    r"weight: expected inputs 4 in dimension 1, got shape \(5, 3, 3, 3\)": lambda t: {
        "weight": t["weight"][:, :3]
    },
    "weight: expected columns 3 in dimension 3": lambda t: {"weight": t["weight"][..., :1]},
    "weight: expected 1 to .* outputs": lambda t: {"weight": t["weight"][:0]},
    "bias: expected outputs 5 in dimension 0": lambda t: {"bias": t["bias"][:4]},
    "bias: expected float32, got bfloat16": lambda t: {"bias": t["bias"].bfloat16()},
    "add: expected rows 6 in dimension 1": lambda t: {"add": t["add"][:, :, :5]},
    "add: expected outputs 5 in dimension 3": lambda t: {"add": t["add"][:, :4]},
}


@pytest.mark.parametrize("line", list(WRONG))
def test_what_does_not_fit_is_refused_in_one_line(line: str) -> None:
    t = drawn(2, 4, 5, 6, 7)
    with pytest.raises((RuntimeError, ValueError), match=rf"stan::convolve: {line}") as error:
        convolve(**(t | WRONG[line](t)))
    assert "\n" not in str(error.value).strip()


def test_pictures_of_another_shape_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"stan::convolve: input: expected 4 dimensions \(N, H, W, C\)"):
        torch.ops.stan.convolve(torch.zeros(6, 7, 3), torch.zeros(5, 3, 3, 3), None, None, False)
    with pytest.raises(RuntimeError, match="stan::convolve_backward: grad: expected rows 6 in dimension 1"):
        torch.ops.stan.convolve_backward(torch.zeros(1, 5, 7, 2), torch.zeros(1, 6, 7, 3))
