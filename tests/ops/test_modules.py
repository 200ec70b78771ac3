"""Every function has a module that does the same."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from stan import ops
from stan.ops.types import SearchSettings, WindowSettings, WindowSpec
from tests.ops.cases import case, matches_case, on
from tests.ops.conftest import Place


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else all(torch.equal(x, y) for x, y in zip(a, b))


def test_modules_are_the_functions(place: Place) -> None:
    c, m = case(heads=2, patch=3), matches_case()
    query, key, flow = on(place.device, c.query, c.key, c.flow)
    value, *match = on(place.device, *m.values())
    backend = place.backend
    found = ops.ShiftedNLS(**c.settings, backend=backend)(query, key, flow)
    assert same(found, ops.shifted_nls(query, key, flow, **c.settings, backend=backend))
    again = ops.Refine(window=3, patch=3, topk=2, backend=backend)(query, key, *found[1:])
    expected = ops.refine(query, key, *found[1:], window=3, patch=3, topk=2, backend=backend)
    assert same(again, expected)
    by_block = matches_case(block=2)
    value_2, *match_2 = on(place.device, *by_block.values())
    for module, function in ((ops.Gather, ops.gather), (ops.GatherStack, ops.gather_stack)):
        found_2 = module(block=2, backend=backend)(value_2, *match_2)
        assert same(found_2, function(value_2, *match_2, block=2, backend=backend))
    settings = {"patch": 3, "dilation": 2, "backend": backend}
    assert same(ops.Gather(**settings)(value, *match), ops.gather(value, *match, **settings))
    assert same(
        ops.GatherStack(backend=backend)(value, *match), ops.gather_stack(value, *match, backend=backend)
    )
    scattered = ops.Scatter(**settings)(value, *match, (6, 7))
    assert same(scattered, ops.scatter(value, *match, size=(6, 7), **settings))
    attended = ops.ShiftedAttention(**c.settings, scale=0.1, backend=backend)(query, key, key, flow)
    expected = ops.shifted_attention(query, key, key, flow, **c.settings, scale=0.1, backend=backend)
    assert same(attended, expected)
    one = torch.rand(2, 1, 3, 2, 5, 6, generator=torch.Generator().manual_seed(0)).to(place.device)
    flows = ops.SearchFlow(stride=2, backend=backend)(*one)
    assert same(flows, ops.search_flow(*one, stride=2, backend=backend))
    assert same(ops.RescaleFlow((3, 4))(flows), ops.rescale_flow(flows, (3, 4)))
    assert same(ops.Weights(3.0)(found.scores), ops.weights(found.scores, 3.0))


def test_learned_scale() -> None:
    weights = ops.Weights(10.0, heads=3, learned=True)
    scores = torch.randn(1, 3, 1, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights(scores), ops.weights(scores, 10.0))
    weights(scores)[..., 0].sum().backward()
    assert weights.log_scale.grad.abs().min() > 0
    copy = ops.Weights(1.0, heads=3, learned=True)
    copy.load_state_dict(weights.state_dict())
    torch.testing.assert_close(copy.scale, torch.full((3,), 10.0))
    assert not list(ops.Weights(10.0).parameters())


def test_learned_scale_of_an_attention(place: Place) -> None:
    c = case(heads=2)
    module = ops.ShiftedAttention(**c.settings, scale=0.1, learned=True, backend=place.backend).to(
        place.device
    )
    query, key, flow = on(place.device, c.query, c.key, c.flow)
    module(query, key, key, flow).square().sum().backward()
    assert module.weights.log_scale.grad.shape == (2,)
    assert module.weights.log_scale.grad.abs().min() > 0


def test_settings_are_shown() -> None:
    text = repr(ops.ShiftedAttention(window=5, heads=2, metric="dot"))
    assert "window=5, heads=2, metric='dot'" in text
    assert "scale=10.0" in text


def test_settings_are_spelled_once() -> None:
    """What type checkers are told, and what help() shows, are the fields of the specs."""
    names = {field.name for field in dataclasses.fields(ops.SearchSpec)}
    assert set(get_type_hints(SearchSettings)) == names
    assert set(get_type_hints(WindowSettings)) == {f.name for f in dataclasses.fields(WindowSpec)} - {
        "topk",
        "heads",
    }
    for function in (ops.shifted_nls, ops.shifted_attention):
        shown = inspect.signature(function).parameters
        assert names <= set(shown)
        assert shown["window"].default == ops.SearchSpec().window
    assert inspect.signature(ops.refine).parameters["window"].default == 1
    assert inspect.signature(ops.refine).parameters["topk"].default is None


class Everything(nn.Module):
    """A network that uses every function once."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        settings = {"window": 3, "heads": 2, "backend": backend}
        self.flow = ops.SearchFlow(backend=backend)
        self.search = ops.ShiftedNLS(topk=4, patch=3, **settings)
        self.refine = ops.Refine(window=3, topk=3, backend=backend)
        self.weights = ops.Weights(0.1, heads=2, learned=True)
        self.gather, self.stack = ops.Gather(patch=3, backend=backend), ops.GatherStack(backend=backend)
        self.scatter = ops.Scatter(backend=backend)
        self.attention = ops.ShiftedAttention(topk=4, **settings)

    def forward(self, video: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        flow = self.flow(ops.rescale_flow(forward, (5, 6)), ops.rescale_flow(backward, (5, 6)))
        matches = self.search(video, video, flow)
        matches = self.refine(video, video, matches.offsets, matches.frames)
        weights = self.weights(matches.scores)
        out = self.gather(video, weights, *matches[1:])
        out = out + self.stack(video, weights, *matches[1:]).sum(2).transpose(1, 2).flatten(2, 3)
        out = out + self.scatter(out, weights, *matches[1:], (5, 6))
        return out + self.attention(video, video, out, flow)


def test_compiles_without_graph_breaks(place: Place) -> None:
    """Forward and backward, traced as a whole; with backend="eager" no compiler is needed.

    The native kernels must trace in one piece; the reference may break the graph.
    """
    torch.compiler.reset()
    random = torch.Generator().manual_seed(0)
    video = torch.randn(1, 3, 4, 5, 6, generator=random)
    flows = [torch.randn(1, 3, 2, 10, 12, generator=random) for _ in range(2)]
    module = Everything(place.backend).to(place.device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=place.backend == "native")

    def run(fn: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.to(place.device).requires_grad_() for t in (video, *flows)]
        module.zero_grad()
        out = fn(*leaves)
        out.square().sum().backward()
        return [out.detach(), *(t.grad for t in leaves), module.weights.log_scale.grad.clone()]

    for a, b in zip(run(compiled), run(module)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_under_autocast(place: Place, dtype: torch.dtype) -> None:
    """Features come in half precision out of convolutions; flow and weights are float32."""
    random = torch.Generator().manual_seed(0)
    video = torch.randn(1, 3, 4, 5, 6, generator=random).to(place.device)
    flow = torch.randn(1, 3, 2, 2, 5, 6, generator=random).to(place.device)
    conv = nn.Conv2d(4, 4, 1).to(place.device)
    attention = ops.ShiftedAttention(window=3, topk=4, scale=0.1, learned=True, backend=place.backend)
    attention = attention.to(place.device)
    with torch.autocast(place.device, dtype):
        features = conv(video[0])[None]
        assert features.dtype == dtype
        out = attention(features, features, features, flow)
        matches = ops.shifted_nls(features, features, flow, backend=place.backend)
    assert out.dtype == dtype
    assert matches.scores.dtype == torch.float32
    out.float().square().sum().backward()
    assert conv.weight.grad.abs().sum() > 0
