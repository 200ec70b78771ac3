"""Hostile input: every wrong argument gets an exception that names it, its value and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stan import ops
from tests.ops.cases import matches_case
from tests.ops.conftest import Place

V = torch.zeros(1, 3, 4, 5, 6)  # a video (B, T, HD*C, H, W)
FLOW = torch.zeros(1, 3, 2, 2, 5, 6)
ONE_STEP = torch.zeros(1, 3, 2, 5, 6)
SCORES = torch.zeros(1, 1, 3, 5, 6, 2)
OFFSETS = torch.zeros(1, 1, 3, 5, 6, 2, 2)
FRAMES = torch.zeros(1, 1, 3, 5, 6, 2, dtype=torch.int32)


def search(query: Any = V, key: Any = V, flow: Any = FLOW, **settings: Any) -> Any:
    return ops.shifted_nls(query, key, flow, **{"window": 3, "topk": 2} | settings)


def attend(query: Any = V, key: Any = V, value: Any = V, flow: Any = FLOW, **settings: Any) -> Any:
    return ops.shifted_attention(query, key, value, flow, **{"window": 3, "topk": 2} | settings)


def refine(
    query: Any = V, key: Any = V, offsets: Any = OFFSETS, frames: Any = FRAMES, **settings: Any
) -> Any:
    return ops.refine(query, key, offsets, frames, **settings)


def follow(forward: Any = ONE_STEP, backward: Any = ONE_STEP, **settings: Any) -> Any:
    return ops.search_flow(forward, backward, **settings)


def gather(
    value: Any = V, weights: Any = SCORES, offsets: Any = OFFSETS, frames: Any = FRAMES, **s: Any
) -> Any:
    return ops.gather(value, weights, offsets, frames, **s)


def stack(
    value: Any = V, weights: Any = SCORES, offsets: Any = OFFSETS, frames: Any = FRAMES, **s: Any
) -> Any:
    return ops.gather_stack(value, weights, offsets, frames, **s)


def scatter(
    source: Any = V,
    weights: Any = SCORES,
    offsets: Any = OFFSETS,
    frames: Any = FRAMES,
    size: Any = (5, 6),
    **s: Any,
) -> Any:
    return ops.scatter(source, weights, offsets, frames, size=size, **s)


HOSTILE: list[tuple[Callable, dict[str, Any], type[Exception], str]] = [
    # numbers
    (search, {"window": 0}, ValueError, "window: expected at least 1, got 0"),
    (search, {"window": -3}, ValueError, "window: expected at least 1, got -3"),
    (search, {"window": 3.0}, TypeError, r"window: expected an int, got 3\.0"),
    (search, {"window": True}, TypeError, "window: expected an int, got True"),
    (search, {"window": "9"}, TypeError, "window: expected an int, got '9'"),
    (search, {"window": np.int64(3)}, TypeError, r"window: expected an int, got .*3"),
    (search, {"window": None}, TypeError, "window: expected an int, got None"),
    (search, {"temporal_window": -1}, ValueError, "temporal_window: expected at least 0, got -1"),
    (search, {"temporal_window": 2}, ValueError, "key: expected T of at least 5, .* got T = 3"),
    (search, {"start": -1}, ValueError, "start: expected at least 0, got -1"),
    (
        search,
        {"start": 1},
        ValueError,
        "key: expected T of at least 4, for the 3 .* start=1 on, got T = 3",
    ),
    (search, {"topk": 0}, ValueError, "topk: expected at least 1, got 0"),
    (search, {"topk": 28}, ValueError, r"topk: expected at most 27, .*\(3 frame\(s\) of 3 x 3\), got 28"),
    (search, {"topk": 10, "select": "each"}, ValueError, "topk: expected at most 9, .* got 10"),
    (search, {"topk": 27, "self_match": "exclude"}, ValueError, "topk: expected at most 26, .* got 27"),
    (search, {"window": 1, "topk": 1, "select": "each", "self_match": "exclude"}, ValueError, "at most 0"),
    (search, {"heads": 0}, ValueError, "heads: expected at least 1, got 0"),
    (search, {"heads": 3}, ValueError, "heads: expected a divisor of the 4 channels of query, got 3"),
    (search, {"patch": 2}, ValueError, "patch: expected an odd number, .* got 2"),
    (search, {"patch": -1}, ValueError, "patch: expected at least 1, got -1"),
    (search, {"dilation": 0}, ValueError, "dilation: expected at least 1, got 0"),
    (search, {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
    (search, {"key_stride": 0.0}, ValueError, r"key_stride: expected a finite number above 0, got 0\.0"),
    (search, {"key_stride": -1}, ValueError, "key_stride: expected a finite number above 0, got -1"),
    (
        search,
        {"key_stride": float("nan")},
        ValueError,
        "key_stride: expected a finite number above 0, got nan",
    ),
    (search, {"key_stride": "1"}, TypeError, "key_stride: expected a number, got '1'"),
    (search, {"window": 16385}, ValueError, "window: expected at most 16384, got 16385"),
    (search, {"dilation": 32769}, ValueError, "dilation: expected at most 32768, got 32769"),
    (search, {"stride": 2**23 + 1}, ValueError, "stride: expected at most 8388608, got 8388609"),
    (search, {"key_stride": 1e7}, ValueError, "key_stride: expected at most 8388608, got 10000000.0"),
    (refine, {"patch": 257}, ValueError, "patch: expected at most 255, got 257"),
    (gather, {"patch": 257}, ValueError, "patch: expected at most 255, got 257"),
    (gather, {"block": 2**63}, ValueError, "block: expected at most 8388608"),
    (search, {"metric": "cosine"}, ValueError, r"metric: expected one of \('l2', 'dot'\), got 'cosine'"),
    (search, {"select": "best"}, ValueError, "select: expected one of .* got 'best'"),
    (
        search,
        {"self_match": "anchors"},
        ValueError,
        "self_match: 'anchors' needs select='each', got select='all'",
    ),
    (search, {"self_match": True}, ValueError, "self_match: expected one of .* got True"),
    (search, {"slide": 1}, TypeError, "slide: expected True or False, got 1"),
    (search, {"causal": "yes"}, TypeError, "causal: expected True or False, got 'yes'"),
    (search, {"backend": "cuda"}, ValueError, "backend: expected one of .* got 'cuda'"),
    # tensors
    (
        search,
        {"query": V[0]},
        ValueError,
        r"query: expected 5 axes \(B, T, HD\*C, H, W\), got shape \(3, 4, 5, 6\)",
    ),
    (search, {"query": V.numpy()}, TypeError, "query: expected a tensor .* got ndarray"),
    (search, {"query": None}, TypeError, "query: expected a tensor .* got NoneType"),
    (search, {"query": V.int()}, TypeError, "query: expected a floating-point tensor, got torch.int32"),
    (
        search,
        {"query": V.to(torch.complex64)},
        TypeError,
        "query: expected a floating-point .* got torch.complex64",
    ),
    (
        search,
        {"query": V[..., :0]},
        ValueError,
        r"query: expected .* at least 1, got shape \(1, 3, 4, 5, 0\)",
    ),
    (
        search,
        {"query": V[:, :, :0]},
        ValueError,
        r"query: expected .* at least 1, got shape \(1, 3, 0, 5, 6\)",
    ),
    (
        search,
        {"query": V[:, :0], "key": V[:, :0]},
        ValueError,
        r"query: expected .* got shape \(1, 0, 4, 5, 6\)",
    ),
    (
        search,
        {"key": V[:, :, :2]},
        ValueError,
        r"key: expected shape .* \(1, any, 4, any, any\), got \(1, 3, 2, 5, 6\)",
    ),
    (
        search,
        {"key": V[:, :2]},
        ValueError,
        "key: expected T of at least 3, for the 3 .* start=0 on, got T = 2",
    ),
    (search, {"key": V.repeat(2, 1, 1, 1, 1)}, ValueError, r"key: expected shape .* got \(2, 3, 4, 5, 6\)"),
    (search, {"key": V[..., :0]}, ValueError, "key: expected .* at least 1"),
    (search, {"key": V.half()}, TypeError, "key: expected torch.float32, as query, got torch.float16"),
    (search, {"key": V.to("meta")}, ValueError, "key: expected device cpu, as query, got meta"),
    (search, {"flow": FLOW[0]}, ValueError, r"flow: expected 6 axes .* got shape \(3, 2, 2, 5, 6\)"),
    (
        search,
        {"flow": FLOW[:, :, :1]},
        ValueError,
        r"flow: expected shape .*\(1, 3, 2, 2, 5, 6\), got \(1, 3, 1, 2, 5, 6\)",
    ),
    (search, {"flow": FLOW, "stride": 2}, ValueError, r"flow: expected shape .*\(1, 3, 2, 2, 3, 3\), got"),
    (search, {"flow": FLOW, "causal": True}, ValueError, r"flow: expected shape .*\(1, 3, 1, 2, 5, 6\), got"),
    (search, {"flow": FLOW[:, None].repeat(1, 3, *[1] * 5)}, ValueError, "flow: expected shape .* got"),
    (search, {"flow": FLOW.long()}, TypeError, "flow: expected a floating-point tensor, got torch.int64"),
    (search, {"flow": 0.5}, TypeError, "flow: expected a tensor .* got float"),
    (search, {"flow": FLOW.to("meta")}, ValueError, "flow: expected device cpu, as query, got meta"),
    # attention
    (attend, {"value": V[:, :2]}, ValueError, r"value: expected shape .* got \(1, 2, 4, 5, 6\)"),
    (
        attend,
        {"value": V[:, :, :3], "heads": 2},
        ValueError,
        "heads: expected a divisor of the 3 channels of value",
    ),
    (attend, {"value": V.to("meta")}, ValueError, "value: expected device cpu, as query, got meta"),
    (attend, {"scale": 0}, ValueError, "scale: expected a finite number above 0, got 0"),
    (
        attend,
        {"scale": torch.ones(2)},
        ValueError,
        r"scale: expected a number or shape \(HD,\) = \(1,\), got \(2,\)",
    ),
    (attend, {"scale": torch.ones(1).to("meta")}, ValueError, "scale: expected device cpu"),
    (attend, {"topk": 99}, ValueError, "topk: expected at most 27"),
    # refine
    (refine, {"window": 0}, ValueError, "window: expected at least 1, got 0"),
    (refine, {"topk": 3}, ValueError, r"topk: expected at most 2, .*\(2 match\(es\) of 1 x 1\), got 3"),
    (refine, {"heads": 2}, ValueError, "heads: expected 1, axis 1 of offsets, or None, got 2"),
    (
        refine,
        {"stride": 2},
        ValueError,
        r"offsets: expected shape .* stride 2 = \(1, any, 3, 3, 3, any, 2\), got",
    ),
    (refine, {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
    (refine, {"offsets": OFFSETS[..., 0]}, ValueError, "offsets: expected 7 axes .* got shape"),
    (refine, {"offsets": OFFSETS[..., :1]}, ValueError, "offsets: expected shape .* got"),
    (
        refine,
        {"offsets": OFFSETS.int()},
        TypeError,
        "offsets: expected a floating-point tensor, got torch.int32",
    ),
    (
        refine,
        {"offsets": OFFSETS.repeat(1, 3, *[1] * 5), "frames": FRAMES.repeat(1, 3, *[1] * 4)},
        ValueError,
        "heads",
    ),
    (
        refine,
        {"offsets": OFFSETS[..., :0, :], "frames": FRAMES[..., :0]},
        ValueError,
        "offsets: expected HD and K",
    ),
    (
        refine,
        {"frames": FRAMES.float()},
        TypeError,
        "frames: expected an int32 or int64 tensor, got torch.float32",
    ),
    (refine, {"frames": FRAMES[..., :1]}, ValueError, r"frames: expected shape .* got \(1, 1, 3, 5, 6, 1\)"),
    (refine, {"frames": None}, TypeError, "frames: expected a tensor .* got NoneType"),
    # flow
    (follow, {"temporal_window": -1}, ValueError, "temporal_window: expected at least 0, got -1"),
    (follow, {"temporal_window": 2}, ValueError, "forward: expected T of at least 5, .* got T = 3"),
    (follow, {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
    (follow, {"causal": 1}, TypeError, "causal: expected True or False, got 1"),
    (follow, {"forward": V}, ValueError, r"forward: expected shape .* got \(1, 3, 4, 5, 6\)"),
    (follow, {"forward": ONE_STEP[0]}, ValueError, "forward: expected 5 axes"),
    (
        follow,
        {"forward": ONE_STEP[..., :0], "backward": ONE_STEP[..., :0]},
        ValueError,
        "forward: expected .* at least 1",
    ),
    (follow, {"backward": ONE_STEP[:, :2]}, ValueError, "backward: expected shape .* as forward"),
    (follow, {"backward": ONE_STEP.double()}, TypeError, "backward: expected torch.float32, as forward"),
    (follow, {"backward": ONE_STEP.to("meta")}, ValueError, "backward: expected device cpu"),
    (
        ops.rescale_flow,
        {"flow": V, "size": (2, 2)},
        ValueError,
        r"flow: expected shape \(..., 2, H, W\), got",
    ),
    (ops.rescale_flow, {"flow": ONE_STEP.int(), "size": (2, 2)}, TypeError, "flow: .* got torch.int32"),
    (ops.rescale_flow, {"flow": ONE_STEP, "size": 3}, ValueError, r"size: expected \(H, W\), got 3"),
    (ops.rescale_flow, {"flow": ONE_STEP, "size": (0, 3)}, ValueError, "size: expected at least 1, got 0"),
    # weights
    (ops.weights, {"scores": SCORES[0]}, ValueError, "scores: expected 6 axes"),
    (
        ops.weights,
        {"scores": SCORES, "scale": -1.0},
        ValueError,
        r"scale: expected a finite number above 0, got -1\.0",
    ),
    (ops.weights, {"scores": SCORES, "scale": "10"}, TypeError, "scale: expected a number, got '10'"),
    (ops.weights, {"scores": SCORES, "scale": torch.ones(1, 1)}, ValueError, r"scale: .* got \(1, 1\)"),
    (ops.weights, {"scores": SCORES, "scale": torch.ones(1).int()}, TypeError, "scale: .* got torch.int32"),
    (
        ops.weights,
        {"scores": SCORES, "scale": torch.ones(1).to("meta")},
        ValueError,
        "scale: expected device cpu",
    ),
]
for fn, first in ((gather, "value"), (stack, "value"), (scatter, "source")):
    HOSTILE += [
        (fn, {first: V[0]}, ValueError, f"{first}: expected 5 axes"),
        (fn, {first: V.int()}, TypeError, f"{first}: expected a floating-point tensor, got torch.int32"),
        (fn, {first: torch.cat([V, V])}, ValueError, f"weights: expected shape .* for this {first}"),
        (fn, {"weights": SCORES[0]}, ValueError, "weights: expected 6 axes"),
        (fn, {"weights": SCORES[..., :1]}, ValueError, "offsets: expected shape .* as weights"),
        (fn, {"weights": SCORES[..., :0]}, ValueError, "weights: expected HD, T, Hq, Wq and K of at least 1"),
        (fn, {"weights": SCORES.to("meta")}, ValueError, "weights: expected device cpu"),
        (fn, {"offsets": OFFSETS[..., 0]}, ValueError, "offsets: expected 7 axes"),
        (fn, {"frames": FRAMES[..., 0]}, ValueError, "frames: expected 6 axes"),
        (fn, {"frames": FRAMES.to(torch.int16)}, TypeError, "frames: .* got torch.int16"),
        (fn, {"heads": 2}, ValueError, "heads: expected 1, axis 1 of weights, or None, got 2"),
        (fn, {"heads": 0}, ValueError, "heads: expected at least 1, got 0"),
        (fn, {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
        (fn, {"backend": "fast"}, ValueError, "backend: expected one of .* got 'fast'"),
    ]
for fn in (gather, scatter):
    HOSTILE += [
        (fn, {"patch": 4}, ValueError, "patch: expected an odd number, .* got 4"),
        (fn, {"dilation": -2}, ValueError, "dilation: expected at least 1, got -2"),
    ]
for fn in (gather, stack):
    HOSTILE += [
        (fn, {"block": 0}, ValueError, "block: expected at least 1, got 0"),
        (fn, {"block": 2}, ValueError, r"weights: expected shape .* for this value and blocks of 2"),
    ]
HOSTILE += [
    (scatter, {"source": V[:, :2]}, ValueError, "weights: expected shape .* for this source"),
    (scatter, {"size": (5,)}, ValueError, r"size: expected \(H, W\), got \(5,\)"),
    (scatter, {"size": (5, 0)}, ValueError, "size: expected at least 1, got 0"),
    (scatter, {"source": V[..., :4]}, ValueError, r"source: expected shape .* \(any, any, any, 5, 6\), got"),
]


@pytest.mark.parametrize(
    ("call", "kwargs", "error", "message"),
    HOSTILE,
    ids=[f"{call.__name__}-{'-'.join(kwargs)}-{n}" for n, (call, kwargs, _, _) in enumerate(HOSTILE)],
)
def test_wrong_argument(call: Callable, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(**kwargs)
    assert "\n" not in str(caught.value)


def test_defaults_of_this_file_are_fine(place: Place) -> None:
    """So that each error above comes from the one argument that is wrong."""
    for call in (search, attend, refine, follow, gather, stack, scatter):
        call(backend=place.backend)


@pytest.mark.parametrize("settings", [{"window": 0}, {"topk": 300}, {"metric": "l1"}, {"patch": 2}])
def test_modules_complain_when_they_are_made(settings: dict[str, Any]) -> None:
    for module in (ops.ShiftedNLS, ops.ShiftedAttention, ops.Refine):
        if module is ops.Refine and "topk" in settings:
            continue  # how many matches come in is not known yet
        with pytest.raises(ValueError, match=next(iter(settings))):
            module(**settings)
    for module in (ops.Gather, ops.Scatter):
        with pytest.raises(ValueError, match="dilation"):
            module(dilation=0)
    with pytest.raises(ValueError, match="temporal_window"):
        ops.SearchFlow(temporal_window=-1)
    with pytest.raises(ValueError, match="scale"):
        ops.Weights(0.0)
    with pytest.raises(ValueError, match="size"):
        ops.RescaleFlow((3, 0))
    with pytest.raises(TypeError, match="windw"):
        ops.ShiftedAttention(windw=3)


def test_values_that_look_hostile_but_are_not(place: Place) -> None:
    """Whole key strides given as int, numpy's floats, int64 frames, and mixed float types are welcome."""
    search(key_stride=np.float64(0.5), backend=place.backend)
    search(key_stride=2, backend=place.backend)
    refine(frames=FRAMES.long(), backend=place.backend)
    m = matches_case()
    ops.gather(m["value"].double(), m["weights"], m["offsets"], m["frames"], backend=place.backend)
