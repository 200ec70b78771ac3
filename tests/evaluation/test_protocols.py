"""The protocols are frozen, and their noise is the same bits everywhere."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from stan import registry
from stan.data import noise as noises
from stan.errors import ConfigError
from stan.evaluation import PROTOCOLS, add_noise
from stan.evaluation.protocols import digest, get, to_float
from tests.conftest import ROOT

GREY = torch.full((3, 3, 16, 24), 128, dtype=torch.uint8)
NOISE_SHA256 = "710ac633881838106364afa4b5757acf3fcdae56ca83ae6b9f7c215198bd382d"


def noisy(sequence: str = "dog", sigma: float = 30, seed: int = 2309, kind: str = "gaussian") -> torch.Tensor:
    return add_noise(GREY, noises.build(kind), sigma, sequence=sequence, seed=seed)


def test_protocols_are_what_tables_were_made_with() -> None:
    """A change here makes published tables incomparable: make a new version instead."""
    frozen = {p.name: (p.data, p.split, p.max_frames, p.noise, p.border, p.seed) for p in PROTOCOLS.values()}
    assert frozen == {
        "davis-full": ("davis", "test-dev", None, "gaussian", 0, 2309),
        "davis-85": ("davis", "test-dev", 85, "gaussian", 0, 2309),
        "set8": ("set8", None, None, "gaussian", 0, 2309),
        "quick": (None, "val", 10, "gaussian", 0, 2309),
    }
    assert all(p.sigmas == (10, 20, 30, 40, 50) and p.version == 1 for p in PROTOCOLS.values())
    with pytest.raises(AttributeError):
        PROTOCOLS["quick"].seed = 1  # type: ignore[misc]


def test_unknown_protocol_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'davis-86'.*'davis-85'"):
        get("davis-86")


def test_noise_of_a_key_never_changes() -> None:
    assert digest(noisy()) == NOISE_SHA256


def test_noise_is_numpys_pcg64_from_the_hash_of_the_key() -> None:
    """Rebuilt from numpy and hashlib alone, as another laboratory would."""
    import hashlib

    data = b"".join(len(t).to_bytes(8, "little") + t for t in (b"n2309", b"sdog", b"n30"))
    words = np.frombuffer(hashlib.sha256(data).digest(), "<u4").tolist()
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words))).standard_normal(GREY.shape)
    clean = np.full(GREY.shape, 128, np.float32) / np.float32(255)
    expected = clean + draw.astype(np.float32) * np.float32(30 / 255)
    assert noisy().numpy().tobytes() == expected.tobytes()


def test_noise_does_not_depend_on_threads_processes_or_other_draws() -> None:
    program = (
        "import torch, numpy; torch.manual_seed(5); numpy.random.seed(5); torch.rand(7)\n"
        "from tests.evaluation.test_protocols import digest, noisy\n"
        "for threads in (1, 2, 5): torch.set_num_threads(threads); print(digest(noisy()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == [NOISE_SHA256] * 3


@pytest.mark.cuda
def test_noise_does_not_depend_on_the_device() -> None:
    noise = add_noise(GREY.cuda(), noises.build("gaussian"), 30, sequence="dog")
    assert digest(noise) == NOISE_SHA256


@pytest.mark.parametrize("kind", registry.noises.names())
def test_first_frames_of_a_longer_clip_get_the_same_noise(kind: str) -> None:
    noise = noises.build(kind)
    whole = add_noise(GREY, noise, 30, sequence="dog")
    start = add_noise(GREY[:2], noise, 30, sequence="dog")
    assert torch.equal(whole[:2], start)
    long = GREY.repeat(7, 1, 1, 1)  # drawn in pieces
    at_once = noise(to_float(long), 30, noises.NumpyRandom(2309, "dog", 30))
    assert torch.equal(add_noise(long, noise, 30, sequence="dog"), at_once)


def test_noise_has_its_level_and_is_neither_clipped_nor_rounded() -> None:
    bright = torch.full((4, 3, 64, 64), 250, dtype=torch.uint8)
    video = add_noise(bright, noises.build("gaussian"), 30, sequence="x")
    error = (video - to_float(bright)).double() * 255
    assert float(error.std()) == pytest.approx(30, rel=0.01)
    assert abs(float(error.mean())) < 4 * 30 / math.sqrt(error.numel())
    assert video.max() > 1.2
    assert ((video * 255).frac().abs() > 1e-3).float().mean() > 0.95


def test_draws_of_other_keys_are_independent() -> None:
    draws = [noisy(), noisy("judo"), noisy(sigma=31), noisy(seed=1)]
    errors = torch.stack([(d - to_float(GREY)).flatten() for d in draws])
    correlation = torch.corrcoef(errors) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(GREY.numel())


def test_departures_are_named() -> None:
    protocol = PROTOCOLS["davis-85"]
    same = {
        "data": "davis",
        "split": "test-dev",
        "max_frames": 85,
        "noise": "gaussian",
        "border": 0,
        "seed": 2309,
    }
    assert protocol.departures(**same) == []
    cases = {
        "split val, not test-dev": {"split": "val"},
        "data folder, not davis": {"data": "folder"},
        "at most 25 frames, not at most 85 frames": {"max_frames": 25},
        "all frames, not at most 85 frames": {"max_frames": None},
        "gaussian_rounded noise, not gaussian": {"noise": "gaussian_rounded"},
        "noise seed 7, not 2309": {"seed": 7},
        "8 pixels left out at each side, not 0": {"border": 8},
        "2 sequences picked by hand": {"sequences": 2},
        "frames shrunk by 2": {"downscale": 2},
    }
    for phrase, change in cases.items():
        assert protocol.departures(**{**same, **change}) == [phrase]
    assert PROTOCOLS["quick"].departures(**{**same, "split": "train", "max_frames": 10}) == []
