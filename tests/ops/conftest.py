"""Where the operator tests run, and what they run on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from stan.ops import backend


@dataclass(frozen=True)
class Place:
    """A backend on a device."""

    backend: str
    device: str


def _native_works(device: str) -> bool:
    """Whether the native kernels for a device are built."""
    try:
        backend.resolve("native", torch.zeros(1, device=device))
    except ValueError:
        return False
    return True


def _places() -> list:
    places = [pytest.param(Place("reference", "cpu"), id="reference")]
    if _native_works("cpu"):
        places.append(pytest.param(Place("native", "cpu"), id="native"))
    if torch.cuda.is_available():
        for name in ("reference", "native"):
            if name == "reference" or _native_works("cuda"):
                places.append(pytest.param(Place(name, "cuda"), id=f"{name}-cuda", marks=pytest.mark.cuda))
    return places


@pytest.fixture(params=_places(), scope="session")
def place(request: pytest.FixtureRequest) -> Place:
    """Every backend that works here, on every device that is here."""
    return request.param


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
