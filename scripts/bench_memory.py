#!/usr/bin/env python
"""Peak memory of denoising over the length of a video: it must not grow with the number of frames.

    python scripts/bench_memory.py ../shared/data/videos/blocks_720p.mp4 --frames 30 100 292 --memory 1GiB

Each length runs in a process of its own, which reads the file and denoises it frame by frame as
`stan denoise` does, without writing. Reported are the process's peak, by how much it exceeds that before the
first frame, and what was expected. The network has fresh weights: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time


def measure(
    video: str, frames: int, memory: str, model: str, settings: str, threads: int
) -> dict[str, float | str]:
    """Denoise the first `frames` frames of a file and say what that took, in bytes and seconds."""
    import resource

    import av
    import torch

    from stan.inference import denoise_chunks, plan_tiles
    from stan.inference.clip import ClipRunner
    from stan.inference.memory import process_memory
    from stan.inference.planning import measure as measure_network
    from stan.models import build

    torch.set_num_threads(threads)
    network = build(model, **json.loads(settings)).eval()
    with av.open(video) as file:
        stream = file.streams.video[0]
        size = stream.height, stream.width
        plan = plan_tiles(network, size, memory=memory)  # of the size alone: the same for every length
        runner = ClipRunner(network)
        expected = measure_network(runner).video(runner, plan, *size)
        pictures = (
            torch.from_numpy(picture.to_ndarray(format="rgb24")).permute(2, 0, 1)
            for picture in itertools.islice(file.decode(video=0), frames)
        )
        before = process_memory().get("VmRSS", 0)
        started = time.perf_counter()
        count = sum(1 for _ in denoise_chunks(network, pictures, 25, tiles=plan))
    return {
        "frames": count,
        "expected": expected,
        "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.perf_counter() - started,
        "plan": plan.describe(*size, network.multiple),
    }


def main() -> None:
    """Run all lengths and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--frames", type=int, nargs="+", default=[30, 100, 292])
    parser.add_argument("--memory", default="1GiB", help="budget, as of stan denoise (default: %(default)s)")
    parser.add_argument("--model", default="stan_tiny", help="network (default: %(default)s)")
    parser.add_argument("--settings", default="{}", help="its settings as JSON, to make it smaller")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        result = measure(
            options.video, options.one, options.memory, options.model, options.settings, options.threads
        )
        print(json.dumps(result))
        return
    rows = []
    for frames in options.frames:
        command = [sys.executable, __file__, options.video, "--one", str(frames), "--memory", options.memory]
        command += ["--model", options.model, "--settings", options.settings]
        command += ["--threads", str(options.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        if not rows:
            print(f"{options.model}, {row['plan']}\n")
            print("frames  peak MiB  grown MiB  expected MiB  s/frame")
        rows.append(row)
        grown = (row["peak"] - row["before"]) / 2**20
        print(
            f"{row['frames']:6d}  {row['peak'] / 2**20:8.0f}  {grown:9.0f}  {row['expected'] / 2**20:12.0f}"
            f"  {row['seconds'] / max(1, row['frames']):7.2f}",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
