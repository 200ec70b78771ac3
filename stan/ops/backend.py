"""Which implementation of the operator is used: one place decides.

A backend is a module with these functions. Their arguments are already checked and normalised by
`stan.ops.functional`, but may be non-contiguous:

- ``search(query, key, flow, spec: SearchSpec) -> Matches``; flow is None (zero) or
  (B, 1 or HD, T, W_t-1, 2, Hq, Wq) in the type of the scores
- ``refine(query, key, offsets, frames, spec: RefineSpec) -> Matches``
- ``search_flow(forward, backward, temporal_window, stride, causal) -> Tensor``
- ``gather(value, weights, offsets, frames, spec: GatherSpec) -> Tensor``
- ``gather_stack(value, weights, offsets, frames, spec: GatherSpec) -> Tensor``
- ``scatter(source, weights, offsets, frames, size, spec: GatherSpec) -> Tensor``
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from . import library, reference

if not library.WHY_NOT:
    from . import native

NAMES = ("reference", "native")
DEFAULT = os.environ.get("STAN_BACKEND") or None  # for calls that name no backend; None: the fastest


def resolve(name: str | None, *tensors: Tensor) -> ModuleType:
    """Return the backend called `name`; with None that of `DEFAULT`, else the fastest that can handle `tensors`.

    Raises:
        ValueError: no backend has that name, or the named one cannot be used here (the message says why).
    """
    name = name or DEFAULT
    if name == "reference":
        return reference
    if name is not None and name != "native":
        raise ValueError(f"backend: expected one of {NAMES} or None, got {name!r}")
    reason = why_not_native(*tensors)
    if not reason:
        return native
    if name == "native":
        raise ValueError(f"backend: 'native' cannot be used: {reason}")
    return reference


def in_use(device: torch.device) -> str:
    """The name of the backend that calls on tensors of this device get unless they name one."""
    return resolve(None, torch.empty(0, device=device)).__name__.rpartition(".")[2]


def why_not_native(*tensors: Tensor) -> str:
    """Say in one clause why the native kernels cannot be used for these tensors; an empty string if they can."""
    if library.WHY_NOT:
        return library.WHY_NOT
    for tensor in tensors:
        kind = tensor.device.type
        if kind == "cuda" and (reason := _why_not_on_gpu(tensor.device)):
            return reason
        if kind not in ("cpu", "cuda", "meta"):
            return f"there are no native kernels for the device {kind!r}"
    return ""


def _why_not_on_gpu(device: torch.device) -> str:
    if not library.CUDA_ARCHS:
        return f"the library has no CUDA kernels: {library.why_no_cuda()}"
    major, minor = torch.cuda.get_device_capability(device)
    if library.cuda_supports(major, minor):
        return ""
    return f"the CUDA kernels are built for {library.CAPABILITIES}, and {device} has {major}.{minor}"


def report() -> dict[str, str]:
    """What `stan doctor` prints about the operator: each line's label and text."""
    if library.WHY_NOT:
        return {"operator": f"reference (pure PyTorch); native kernels {library.WHY_NOT}"}
    lines = {"operator": f"native, {library.LIBRARY}"}
    if DEFAULT is not None:
        lines["operator in use"] = f"STAN_BACKEND={DEFAULT}, unless a call names another"
    info = library.INFO
    lines["operator build"] = f"torch {info['torch']}, compiler {info['compiler']}"
    lines["operator on cpu"] = f"native, {library.CAPABILITY} kernels"
    if not library.CUDA_ARCHS:
        lines["operator on cuda"] = f"reference; {library.why_no_cuda()}"
        return lines
    lines["operator on cuda"] = f"native, CUDA {info['cuda']}, {library.CAPABILITIES}"
    for index in range(torch.cuda.device_count()):
        if reason := _why_not_on_gpu(torch.device("cuda", index)):
            lines[f"operator on cuda:{index}"] = f"reference; {reason}"
    return lines
