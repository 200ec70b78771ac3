"""Random numbers from keys."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stan.data.noise import NumpyRandom, TorchRandom, entropy

keys = st.lists(
    st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    max_size=4,
)


def test_entropy_is_the_sha256_of_the_parts() -> None:
    parts = [b"n2026", b"stennis", b"n30", b"n" + (12.5).hex().encode()]
    digest = hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()
    assert entropy(2026, "tennis", 30, 12.5) == np.frombuffer(digest, "<u4").tolist()


def test_equal_numbers_are_equal_keys_whatever_their_type() -> None:
    same = [30, 30.0, np.float32(30), np.int64(30), np.float64(30)]
    assert len({tuple(entropy("a", value)) for value in same}) == 1


@settings(deadline=None, derandomize=True)
@given(keys, keys)
def test_different_keys_differ(a: list, b: list) -> None:
    same = len(a) == len(b) and all(isinstance(x, str) == isinstance(y, str) and x == y for x, y in zip(a, b))
    assert (entropy(*a) == entropy(*b)) == same


@pytest.mark.parametrize(
    ("key", "error"), [((True,), TypeError), ((None,), TypeError), ((float("nan"),), ValueError)]
)
def test_bad_keys_are_refused(key: tuple, error: type[Exception]) -> None:
    with pytest.raises(error, match="random key"):
        entropy(*key)


def test_numpy_random_is_plain_pcg64() -> None:
    """What docs/data.md tells a reader to write gives the same numbers."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy(0, "dog", 30))))
    expected = rng.standard_normal((3, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(NumpyRandom(0, "dog", 30).normal((3, 3, 8, 8)).numpy(), expected)


def test_evaluation_numbers_never_change() -> None:
    """Published figures rest on these bits: a change of numpy's or ours that moves them must be noticed."""
    random = NumpyRandom(2026, "tennis", 30)
    draws = [random.normal((1000,)), random.uniform((1000,)), random.poisson(torch.arange(1000) / 20)]
    digest = hashlib.sha256(b"".join(draw.numpy().tobytes() for draw in draws)).hexdigest()
    assert digest == "11953ee477a59a1cdddb7880c965b0d63c1b1264c889b2c34e446938f0a497be"


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_drawing_in_pieces_is_drawing_at_once(pieces: list[int]) -> None:
    whole, parts = NumpyRandom("x"), NumpyRandom("x")
    for draw in ("normal", "uniform"):
        together = torch.cat([getattr(parts, draw)((n, 3, 4)) for n in pieces])
        assert torch.equal(getattr(whole, draw)((sum(pieces), 3, 4)), together)
    rate = torch.rand(sum(pieces), 7) * 40
    together = torch.cat([parts.poisson(r) for r in rate.split(pieces)])
    assert torch.equal(whole.poisson(rate), together)


def test_large_draws_match_numpy_across_the_inner_pieces() -> None:
    """Draws are made a million at a time; the seams must not show."""
    n = (1 << 20) + 1000
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy("big"))))
    random = NumpyRandom("big")
    assert np.array_equal(random.normal((n,)).numpy(), rng.standard_normal(n).astype(np.float32))


@pytest.mark.parametrize("make", [lambda *key: NumpyRandom(*key), lambda *key: TorchRandom("cpu", *key)])
def test_same_key_same_numbers_other_key_others(make) -> None:
    for draw in (
        lambda r: r.normal((50,)),
        lambda r: r.uniform((50,)),
        lambda r: r.poisson(torch.full((50,), 9.0)),
    ):
        assert torch.equal(draw(make(1, "a")), draw(make(1, "a")))
        assert not torch.equal(draw(make(1, "a")), draw(make(1, "b")))


@pytest.mark.parametrize("make", [lambda *key: NumpyRandom(*key), lambda *key: TorchRandom("cpu", *key)])
def test_global_state_is_neither_used_nor_moved(make) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = make("k").normal((20,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  the legacy state is what must not matter
    assert torch.equal(make("k").normal((20,)), first)


@pytest.mark.parametrize("make", [lambda *key: NumpyRandom(*key), lambda *key: TorchRandom("cpu", *key)])
def test_streams_are_independent_and_go_on(make) -> None:
    random = make("k")
    a = random.stream("a").normal((10,))
    random.normal((5,))
    again = make("k")
    assert torch.equal(a, again.stream("a").normal((10,)))
    assert torch.equal(random.stream("a").normal((10,)), again.stream("a").normal((10,)))
    assert not torch.equal(make("k").stream("b").normal((10,)), a)


def test_uniform_stays_below_one() -> None:
    u = NumpyRandom("u").uniform((1_000_000,))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.002


@pytest.mark.cuda
def test_torch_random_on_cuda() -> None:
    a, b = (TorchRandom("cuda", 3, "x") for _ in range(2))
    assert a.normal((4, 5)).device.type == "cuda"
    assert torch.equal(b.normal((4, 5)), TorchRandom("cuda", 3, "x").normal((4, 5)))
    assert a.poisson(torch.full((10,), 5.0, device="cuda")).device.type == "cuda"
