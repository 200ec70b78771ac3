"""The trained weights that come with the package: found by name, listed with what they are worth.

A set of weights NAME is two files in one folder, ``checkpoints/`` in a clone and ``stan/checkpoints/`` in an
installed wheel: ``NAME.safetensors``, and ``NAME.json`` with what was measured (see ``scripts/publish.py``,
which writes both and the model card ``NAME.md``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stan.errors import CheckpointError, nearest


@dataclass(frozen=True)
class Shipped:
    """Trained weights that come with the package.

    Attributes:
        name: what every command takes in place of a file.
        path: the weights.
        facts: what was measured: ``parameters``, ``trained`` (noise kind, levels, steps), ``summary``,
            ``protocol``, ``psnr`` (mean in dB by noise level), ``speed`` (rows of device, size and frames a
            second), ``devices`` it is meant for.
    """

    name: str
    path: Path
    facts: dict[str, Any]

    @property
    def megabytes(self) -> float:
        """Size of the file, MB."""
        return self.path.stat().st_size / 1e6

    @property
    def mean_psnr(self) -> float:
        """Mean of the measured PSNR over noise levels, dB."""
        values = list(self.facts["psnr"].values())
        return sum(values) / len(values)


def folder() -> Path:
    """Where the weights are: beside the package in a clone, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent.parent
    beside = package.parent / "checkpoints"
    return beside if (beside / "README.md").is_file() else package / "checkpoints"


def shipped() -> list[Shipped]:
    """All weights that come with the package, by name.

    Raises:
        CheckpointError: for facts that cannot be read.
    """
    found = []
    for path in sorted(folder().glob("*.safetensors")):
        facts = path.with_suffix(".json")
        try:
            found.append(Shipped(path.stem, path, json.loads(facts.read_text())))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{facts} cannot be read: {error}") from error
    return found


def find(checkpoint: str | Path) -> Path:
    """The file that `checkpoint` means: a path as it is, or the weights of that name.

    A file of the name in the working folder wins over the weights that come with the package.

    Raises:
        CheckpointError: if it is neither; names the nearest weights.
    """
    path = Path(checkpoint)
    if path.is_file() or path.suffix or path.parent != Path("."):
        return path
    known = {weights.name: weights.path for weights in shipped()}
    if path.name in known:
        return known[path.name]  # also where a folder is called so, which cannot be a checkpoint
    if path.exists():
        return path
    raise CheckpointError(f"{checkpoint} is no file and no shipped weights; {nearest(path.name, known)}")


def best_for(device: str) -> Shipped:
    """The shipped weights of the highest PSNR that are meant for a device: "cpu" or "cuda".

    Raises:
        CheckpointError: if there are none.
    """
    fitting = [weights for weights in shipped() if device in weights.facts["devices"]]
    if not fitting:
        raise CheckpointError(f"no weights for {device} come with this package; name a checkpoint")
    return max(fitting, key=lambda weights: weights.mean_psnr)
