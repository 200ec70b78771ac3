"""RAFT of torchvision as an offset source: frozen, its weights read from a file."""

from __future__ import annotations

import functools
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stan.errors import CheckpointError, ConfigError
from stan.files import sha256_of
from stan.flow.base import FlowPair, OffsetSource, bordered, enlarged
from stan.flow.classical import Downscale
from stan.registry import sources
from stan.settings import Count, named

if TYPE_CHECKING:
    from torchvision.models.optical_flow import RAFT

MULTIPLE, SMALLEST = 8, 128
"""RAFT takes sides that are multiples of 8, and of at least 128 pixels."""

TOGETHER = 1 << 26
"""Values of all-pairs correlations, at an eighth of the size, that are held at a time."""

TELLING = "feature_encoder.convnormrelu.0.weight"
"""A weight whose shape says which of the two networks a file is of."""


@sources.register("raft")
class RaftFlow(OffsetSource):
    """RAFT (Teed and Deng, ECCV 2020) of torchvision, small or large by what its file of weights holds.

    It is frozen and gives no gradient. Frames are clipped to [0, 1] and enlarged by repeating their border where they
    are smaller than RAFT takes. Nothing is ever downloaded. A network that uses it keeps the path and a checksum of the
    file in its checkpoints, not the weights themselves, and refuses another file.

    Args:
        weights: the file of torchvision's weights, such as raft_small_C_T_V2-01064c6d.pth, which
            torchvision.models.optical_flow.Raft_Small_Weights.DEFAULT.url names.
        updates: updates of the flow; fewer are faster and less exact.
        downscale: estimate at this part of the size: 2 is a quarter of the pixels and a sixteenth of the memory.
    """

    pairwise = True

    def __init__(self, *, weights: str, updates: Count = 12, downscale: Downscale = 1) -> None:
        super().__init__(**named(locals()))
        self.updates, self.downscale = updates, downscale
        self.checksum = _checksum(weights)
        _network(weights, self.checksum, torch.device("cpu"))  # an unfit file is told at once
        self.fingerprint: Tensor
        self.register_buffer("fingerprint", torch.tensor([*bytes.fromhex(self.checksum)], dtype=torch.uint8))

    @property
    def version(self) -> str:
        """torchvision's version, and which weights."""
        return f"torchvision {version('torchvision')}, weights {self.checksum}"

    @torch.no_grad()
    def estimate(self, video: Tensor) -> FlowPair:
        """Estimate all neighbouring pairs in both directions."""
        b, t, _, h, w = video.shape
        frames = video.float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).flatten(0, 1)
        frames = bordered(frames, MULTIPLE * self.downscale, SMALLEST * self.downscale)
        if self.downscale > 1:
            frames = F.avg_pool2d(frames, self.downscale)
        clips = (2 * frames - 1).unflatten(0, (b, t))  # RAFT takes [-1, 1]
        early, late = clips[:, :-1].flatten(0, 1), clips[:, 1:].flatten(0, 1)
        first, second = torch.cat([early, late]), torch.cat([late, early])
        places = frames.shape[-2] * frames.shape[-1] // MULTIPLE**2
        group = max(1, TOGETHER // places**2)
        network = _network(self.settings["weights"], self.checksum, video.device)
        with torch.autocast(video.device.type, enabled=False), _one_at_a_time:
            parts = [
                network(one, two, num_flow_updates=self.updates)[-1]
                for one, two in zip(first.split(group), second.split(group))
            ]
            network.corr_block.corr_pyramid = []  # it would keep the last correlations
        flow = torch.cat(parts).nan_to_num(0.0, 0.0, 0.0)
        flow = enlarged(flow.unflatten(0, (2, b, t - 1)), self.downscale)[..., :h, :w]
        still = flow.new_zeros(b, 1, 2, h, w)
        return FlowPair(torch.cat([flow[0], still], 1), torch.cat([still, flow[1]], 1))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse a checkpoint that was made with other weights: its flow would silently be another."""
        kept = state.get(f"{prefix}fingerprint")
        if kept is not None and not torch.equal(kept.cpu(), self.fingerprint.cpu()):
            raise CheckpointError(
                f"offset source 'raft': {self.settings['weights']} is not the file that the checkpoint was made with, "
                f"whose SHA-256 begins with {bytes(kept.cpu().tolist())[:8].hex()}; put that one there"
            )
        super()._load_from_state_dict(state, prefix, *args)


_one_at_a_time = threading.Lock()
"""RAFT keeps the correlations of a pair in itself."""


def _checksum(weights: str) -> str:
    path = Path(weights)
    try:
        if not path.is_file():  # a checkpoint of unknown origin may name a device without end
            raise _unfit(weights, "is no file" if path.exists() else "does not exist")
        return sha256_of(path)
    except (OSError, ValueError) as error:
        raise _unfit(weights, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


@functools.lru_cache(maxsize=4)
def _network(weights: str, checksum: str, device: torch.device) -> RAFT:
    """The network with the weights of a file of this checksum. It is no part of the source: copies of the source (the
    moving average) share it, and checkpoints do not hold it."""
    del checksum
    # In a thread of its own: a checkpoint that is being loaded counts the parameters made in its thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_loaded, weights).result().to(device)


def _loaded(weights: str) -> RAFT:
    from torchvision.models.optical_flow import raft_large, raft_small

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a foreign file's pickle
            state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception:  # of whatever kind, by what the file holds
        raise _unfit(weights, "is no file of weights") from None
    if not isinstance(state, dict) or not isinstance(state.get(TELLING), Tensor):
        raise _unfit(weights, "holds no weights of RAFT")
    with torch.device("meta"):
        both = raft_small(weights=None), raft_large(weights=None)
    shape = state[TELLING].shape
    network = next((each for each in both if each.state_dict()[TELLING].shape == shape), None)
    if network is None:
        raise _unfit(weights, f"is of another RAFT: {TELLING} has shape {tuple(shape)}")
    for key, own in network.state_dict().items():
        value = state.get(key)
        if not isinstance(value, Tensor) or value.shape != own.shape:
            what = f"has shape {tuple(value.shape)}" if isinstance(value, Tensor) else "is missing"
            raise _unfit(weights, f"is of another RAFT: {key} {what}")
        if not bool(value.isfinite().all()):
            raise _unfit(weights, f"is of no use: {key} holds values that are not finite")
        state[key] = value.to(own.dtype)
    if extra := next((key for key in state if key not in network.state_dict()), None):
        raise _unfit(weights, f"is of another RAFT: {extra} is unknown")
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _unfit(weights: str, what: str) -> ConfigError:
    from torchvision.models.optical_flow import Raft_Large_Weights, Raft_Small_Weights

    small, large = Raft_Small_Weights.DEFAULT, Raft_Large_Weights.DEFAULT
    return ConfigError(
        f"offset source 'raft': weights={weights} {what}; download {small.url} "
        f"(torchvision.models.optical_flow.{small}) or {large.url} ({large}) and name that file"
    )
