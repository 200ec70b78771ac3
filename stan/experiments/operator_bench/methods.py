"""The searches under test, by name, and the two calls that are timed: forward, and forward with backward."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from stan.experiments.operator_bench.cases import Case
from stan.experiments.operator_bench.competitors import COMPETITORS, Found

Method = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Case], Found]
PASSES = ("forward", "forward+backward")


def _ours(backend: str) -> Method:
    def search(query: torch.Tensor, key: torch.Tensor, flow: torch.Tensor, case: Case) -> Found:
        from stan.ops import shifted_nls

        found = shifted_nls(
            query,
            key,
            flow,
            window=case.window,
            temporal_window=case.temporal_window,
            topk=case.topk,
            heads=case.heads,
            patch=case.patch,
            metric=case.metric,
            backend=backend,
        )
        return Found(*found)

    return search


def method(name: str) -> Method:
    """A search by its name in `METHODS`, or by the path of a Python file with a function `search` like these.

    Raises:
        ValueError: there is no such method; the message says which there are.
    """
    if name in METHODS:
        return METHODS[name]
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"there is no method {name!r}: choose from {', '.join(METHODS)}, or name a Python file"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "search", None)):
        raise ValueError(f"{path} has no function search(query, key, flow, case)")
    found: Method = module.search
    METHODS[name] = found
    return found


OURS = ("native", "reference")
METHODS: dict[str, Method] = {**{name: _ours(name) for name in OURS}, **COMPETITORS}


def call(name: str, case: Case, device: str) -> Callable[[str], tuple[torch.Tensor, ...]]:
    """A function of the pass ("forward" or "forward+backward") that runs method `name` on inputs made once.

    Forward returns (scores, offsets, frames); forward+backward the gradients of query, key and flow.
    """
    search = method(name)
    query, key, flow, cotangent = case.inputs(device)

    def run(which: str) -> tuple[torch.Tensor, ...]:
        if which == "forward":
            with torch.no_grad():
                return tuple(search(query, key, flow, case))
        leaves = [tensor.detach().requires_grad_() for tensor in (query, key, flow)]
        found = Found(*search(leaves[0], leaves[1], leaves[2], case))
        return torch.autograd.grad(found.scores, leaves, cotangent)

    return run


def warm_up(name: str, case: Case, device: str) -> None:
    """Load libraries and start threads on a small problem of the same kind, before anything is measured."""
    side = case.window + case.patch + 2
    tiny = replace(case, height=side, width=side, batch=1)
    run = call(name, tiny, device)
    for which in PASSES:
        run(which)


def agreement(found: Found, ours: Found) -> tuple[float, float]:
    """How far another method's matches are from ours: (largest relative score error, share of equal matches).

    Places may swap where two scores are equal to rounding, so the share is near one, not one.
    """
    error = (found.scores - ours.scores).abs() / (1 + ours.scores.abs())
    near = (found.offsets - ours.offsets).abs().amax(-1) < 1e-2
    same = near & (found.frames == ours.frames)
    return float(error.max()), float(same.float().mean())
