"""Frames per second of `stan denoise`, all included, beside ffmpeg's nlmeans and bm3d on the same files.

    python scripts/bench_denoise.py VIDEO [--checkpoint stan_tiny] [--sizes 256x256 854x480 1280x720] [--json FILE]

The video is scaled, gets noise (noise=alls=25:allf=t) and is stored without loss, once for each size; then every method
reads it, cleans it and writes H.264, one after the other, several times. Medians of whole processes, start included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FFMPEG = ["ffmpeg", "-v", "error", "-y"]
H264 = ["-an", "-c:v", "libx264", "-crf", "18"]


def main() -> None:
    """Run all methods at all sizes and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video")
    parser.add_argument("--checkpoint", default="stan_tiny", help="default: %(default)s")
    parser.add_argument("--sizes", nargs="+", default=["256x256", "854x480", "1280x720"])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            noisy, clean = Path(folder) / f"{size}.mkv", Path(folder) / f"{size}.mp4"
            filters = f"scale={size.replace('x', ':')},noise=alls=25:allf=t"
            source = [*FFMPEG, "-i", args.video, "-frames:v", str(args.frames), "-vf", filters, "-an"]
            subprocess.run([*source, "-c:v", "ffv1", str(noisy)], check=True)
            times: dict[str, list[float]] = {}
            for _ in range(args.repeat):
                for name, command in methods(noisy, clean, args.checkpoint).items():
                    start = time.perf_counter()
                    subprocess.run(command, check=True, capture_output=True)
                    times.setdefault(name, []).append(time.perf_counter() - start)
            for name, seconds in times.items():
                rate = args.frames / statistics.median(seconds)
                rows.append({"method": name, "size": size, "frames_per_second": round(rate, 2)})
                print(f"{size:>10}  {name:24} {rate:7.2f} frames/s", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


def methods(noisy: Path, clean: Path, checkpoint: str) -> dict[str, list[str]]:
    """The command line of each method."""
    stan = [
        sys.executable,
        "-m",
        "stan.cli",
        "denoise",
        str(noisy),
        str(clean),
        "--checkpoint",
        checkpoint,
        "--overwrite",
    ]
    return {
        "stan": stan,
        "stan, float32": [*stan, "--precision", "32"],
        "ffmpeg nlmeans=s=10": [*FFMPEG, "-i", str(noisy), "-vf", "nlmeans=s=10", *H264, str(clean)],
        "ffmpeg bm3d=sigma=10": [*FFMPEG, "-i", str(noisy), "-vf", "bm3d=sigma=10", *H264, str(clean)],
    }


if __name__ == "__main__":
    main()
