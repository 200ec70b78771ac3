#!/usr/bin/env python
"""Time of a training step with the native kernels and with the pure-PyTorch operator, in turn.

    python scripts/bench_step.py configs/train/davis_tiny.yaml
    python scripts/bench_step.py configs/train/davis_paper.yaml data.crop=64 data.batch_size=1 --rounds 3

A step is what `stan train` computes: noise, offsets, forward, loss, backward, optimiser; without reading data.
The pictures are random, as time does not depend on what they show.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from stan import config as configuration
from stan import losses
from stan.data import noise
from stan.ops import backend
from stan.training.fit import build_network


class Step:
    """One training step of a configuration, over and over on the same clips."""

    def __init__(self, config: configuration.Config, device: torch.device) -> None:
        self.network = build_network(config).to(device).train()
        self.noise = noise.build(config.noise.kind, **config.noise.settings)
        self.sigmas = noise.parse_sigma(config.noise.sigma)
        self.loss = losses.build(config.loss.name, **config.loss.given)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.optimizer.lr)
        self.random = noise.TorchRandom(device, config.seed, "benchmark")
        data = config.data
        shape = (data.batch_size, data.frames, 3, data.crop, data.crop)
        self.clean = torch.rand(shape, device=device)

    def __call__(self) -> float:
        """Take the step; returns seconds."""
        start = time.perf_counter()
        sigma = self.sigmas.draw(self.random, len(self.clean))  # (B,)
        noisy = self.noise(self.clean, sigma, self.random)
        denoised = self.network(noisy, sigma=None if self.network.blind else sigma)
        self.optimizer.zero_grad()
        self.loss(denoised, self.clean).backward()
        self.optimizer.step()
        if self.clean.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    """Time both backends and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_intermixed_args()
    config = configuration.load(options.config, options.words)
    step = Step(config, torch.device(options.device))
    seconds: dict[str, list[float]] = {"native": [], "reference": []}
    for number in range(options.rounds + 1):
        for name, times in seconds.items():
            backend.DEFAULT = name
            took = step()
            if number > 0:  # the first of each warms up
                times.append(took)
    data = config.data
    print(
        f"{config.model.name}, {data.batch_size} clips of {data.frames} frames {data.crop}x{data.crop}, "
        f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, times in seconds.items():
        print(f"{name:9s}  median {statistics.median(times):7.3f} s  ({min(times):.3f} to {max(times):.3f})")
    print(f"ratio      {statistics.median(seconds['reference']) / statistics.median(seconds['native']):.1f}")


if __name__ == "__main__":
    main()
