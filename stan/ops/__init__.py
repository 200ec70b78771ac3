"""The Shifted Non-Local Search operator and its companions. See docs/operator.md."""

from .functional import (
    gather,
    gather_stack,
    refine,
    rescale_flow,
    scatter,
    search_flow,
    shifted_attention,
    shifted_nls,
    weights,
)
from .modules import (
    Gather,
    GatherStack,
    Refine,
    RescaleFlow,
    Scatter,
    SearchFlow,
    ShiftedAttention,
    ShiftedNLS,
    Weights,
)
from .types import GatherSpec, Matches, RefineSpec, SearchSpec

__all__ = [
    "Gather",
    "GatherSpec",
    "GatherStack",
    "Matches",
    "Refine",
    "RefineSpec",
    "RescaleFlow",
    "Scatter",
    "SearchFlow",
    "SearchSpec",
    "ShiftedAttention",
    "ShiftedNLS",
    "Weights",
    "gather",
    "gather_stack",
    "refine",
    "rescale_flow",
    "scatter",
    "search_flow",
    "shifted_attention",
    "shifted_nls",
    "weights",
]
