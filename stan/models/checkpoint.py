"""Checkpoints: weights together with all that is needed to use them.

A ``.ckpt`` is a dictionary written by `torch.save` (by Lightning while training, by `save` here) with two
keys of ours: ``"weights"``, the state dict to use, and ``"stan"``, the record of `describe`. A
``.safetensors`` file holds the same weights, and the record as JSON in its metadata. Both are plain data:
loading runs no code of the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import pickle
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from stan.errors import CheckpointError, ConfigError
from stan.files import replacing
from stan.imports import import_modules
from stan.models.base import Trained, VideoDenoiser
from stan.models.registry import build
from stan.models.shipped import find
from stan.settings import changed
from stan.version import __version__

FORMAT = 2
"""Version of the record; raised when an older reader would misread a newer file."""

RENAMED = {"stan_tiny": "unet_tiny", "stan_small": "unet_small"}
"""What the networks of format 1 are called since their names went to better ones."""


def describe(model: VideoDenoiser, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The ``"stan"`` record of a model: plain data from which `load` rebuilds it.

    Args:
        model: the network; its `trained` attribute goes into the record.
        config: the resolved configuration of the run, as plain data.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "model": {"name": model.name, "settings": model.settings},
        "config": config,
        "trained": model.trained.to_dict() if model.trained else None,
    }


def save(model: VideoDenoiser, path: str | Path, config: dict[str, Any] | None = None) -> Path:
    """Write a model for use (no optimiser state) as ``.ckpt`` or ``.safetensors``, by the path's ending.

    The file is written under a temporary name in the same folder, then renamed.

    Raises:
        CheckpointError: for another ending, or if the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".ckpt", ".safetensors"):
        raise CheckpointError(f"checkpoint {path} must end in .ckpt or .safetensors")
    record = describe(model, config)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    try:
        with replacing(path) as file:
            if path.suffix == ".ckpt":
                torch.save({"weights": weights, "stan": record}, file)
            else:
                file.write(safetensors.torch.save(weights, metadata={"stan": json.dumps(record)}))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {first_line(error)}") from error
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights (on the CPU) and the record of a checkpoint, without building the model.

    Args:
        path: a file, or the name of weights that come with the package (see `stan.models.shipped`).

    Raises:
        CheckpointError: if the file is missing, damaged, not one of ours, or of a newer format.
    """
    path = find(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    if path.suffix == ".pt2":
        raise CheckpointError(
            f"checkpoint {path} is a graph, which torch.export.load runs (docs/export.md); give the checkpoint that "
            "`stan export` made it of"
        )
    try:
        weights, record = _read_safetensors(path) if path.suffix == ".safetensors" else _read_ckpt(path)
    except RecursionError:
        raise CheckpointError(f"checkpoint {path} is damaged: its description is nested too deeply") from None
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise CheckpointError(f"checkpoint {path} is damaged: its weights are not a table of tensors")
    for key, value in weights.items():
        if not _is_plain(value):
            raise CheckpointError(
                f"checkpoint {path} holds {key} as {_kind(value)}; weights are plain tensors of numbers"
            )
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict):
        raise CheckpointError(f"checkpoint {path} is damaged: its description of the model is missing")
    if not isinstance(record.get("format"), int) or not 1 <= record["format"] <= FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {record.get('format')!r}; "
            f"this version of stan reads 1 to {FORMAT}, update it"
        )
    if record["format"] == 1:
        model = record["model"]
        record["model"] = {**model, "name": RENAMED.get(model.get("name"), model.get("name"))}
    return weights, record


def holds_training(path: str | Path) -> bool:
    """Whether a checkpoint that `read` takes also holds the state of a training: optimiser, steps, averages."""
    path = find(path)
    if path.suffix == ".safetensors":
        return False
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return {"optimizer_states", "loops", "state_dict"} <= content.keys()


def load(path: str | Path, device: str | torch.device = "cpu", **settings: Any) -> VideoDenoiser:
    """Read a checkpoint and make its model, in eval mode on `device`.

    Args:
        path: a file, or the name of weights that come with the package.
        device: where the model is to be.
        settings: of the network, in place of the checkpoint's own, where its weights fit all the same:
            ``temporal_window=8`` looks at more frames than it was trained with, ``flow="pyramid"`` where another
            offset source points; of ``flow_settings`` those that are not given stay. See ``docs/models.md``.

    Raises:
        ConfigError: a setting that the network does not have, or an impossible value.
        CheckpointError: if the file is missing, damaged, not one of ours, does not fit the model it names, or holds
            values that are not finite.
    """
    weights, record = read(path)
    try:
        model = _make(record, path, settings)
    except (CheckpointError, ConfigError) as first:
        try:
            missing = import_modules(imports_of(record), f"checkpoint {path}")
        except ConfigError:
            if isinstance(first, ConfigError):  # of a setting that was asked for: nobody needs the modules
                raise first from None
            raise
        try:
            model = _make(record, path, settings)
        except CheckpointError as error:
            raise CheckpointError(missing[0] if missing else str(error)) from error
    origin = str(path)
    if settings:
        origin += " with " + ", ".join(f"{key}={value}" for key, value in settings.items())
    if model.settings.get("flow") != record["model"]["settings"].get("flow"):
        if [*model.source.parameters()]:
            raise CheckpointError(
                f"checkpoint {path} has no weights of flow={model.source.name}, which says nothing untrained; it was "
                f"trained with flow={record['model']['settings'].get('flow')}"
            )
        weights = _with_own(weights, model, "source.")
    load_weights(model, weights, origin)
    for key, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"checkpoint {path} is of no use: {key} holds values that are not finite, as when training "
                "diverges; take an earlier one"
            )
    return model.to(device).eval()


def imports_of(record: dict[str, Any]) -> list[str]:
    """Names of the modules that the training behind a checkpoint imported for parts of its own."""
    config = record.get("config")
    names = config.get("imports") if isinstance(config, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _with_own(weights: dict[str, Tensor], model: VideoDenoiser, prefix: str) -> dict[str, Tensor]:
    """A checkpoint's weights, but the model's own where their names begin so."""
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}
    return {key: value for key, value in weights.items() if not key.startswith(prefix)} | own


def _make(record: dict[str, Any], path: str | Path, changes: Mapping[str, Any]) -> VideoDenoiser:
    """The network that a record describes, with `changes` and fresh weights; modules are imported only if it needs
    them."""
    try:
        name, settings = record["model"]["name"], record["model"]["settings"]
        with _no_larger_than(find(path).stat().st_size):
            model = build(name, **(changed(settings, changes) if changes else settings))
        model.trained = Trained.from_dict(record["trained"]) if record.get("trained") else None
        return model
    except KeyError as error:
        reason = f"its description lacks {error}"
    except (ConfigError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        if changes and isinstance(error, ConfigError):
            raise
        reason = first_line(error)
        if isinstance(error, MemoryError) or "allocate memory" in reason:
            reason = "its settings ask for more memory than there is"
    raise CheckpointError(f"checkpoint {path} holds a model that cannot be made: {reason}")


@contextlib.contextmanager
def _no_larger_than(size: int) -> Iterator[None]:
    """Refuse a network that has more parameters than its file has bytes, while it is made: its settings may ask for
    more than any memory holds.

    Raises:
        ConfigError: inside the block.
    """
    made, here = 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        if parameter is not None and threading.get_ident() == here:
            made += parameter.numel()
            if made > size:
                raise ConfigError(
                    f"its settings ask for more parameters than a file of {size:,} bytes can hold"
                )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is just numbers in memory."""
    return (
        value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
        and not value.is_quantized
        and not value.is_complex()
    )


def _kind(value: Tensor) -> str:
    if value.layout is not torch.strided:
        return f"a tensor of layout {str(value.layout).removeprefix('torch.')}"
    if value.is_nested:
        return "a nested tensor"
    if value.device.type != "cpu":
        return f"a tensor of device {value.device.type}, without numbers"
    return f"a tensor of {str(value.dtype).removeprefix('torch.')}"


def load_weights(model: VideoDenoiser, weights: dict[str, Tensor], origin: str) -> None:
    """Put `weights` into `model`; every tensor must fit.

    Raises:
        CheckpointError: names `origin` and the first weight that is missing, foreign or of another shape.
    """
    own = model.state_dict()
    for key in own:
        if key not in weights:
            raise CheckpointError(f"checkpoint {origin} does not fit model {model.name!r}: it lacks {key}")
        if own[key].shape != weights[key].shape:
            raise CheckpointError(
                f"checkpoint {origin} does not fit model {model.name!r}: {key} has shape "
                f"{tuple(weights[key].shape)}, expected {tuple(own[key].shape)}"
            )
        if own[key].is_floating_point() != weights[key].is_floating_point():
            raise CheckpointError(
                f"checkpoint {origin} does not fit model {model.name!r}: {key} is {weights[key].dtype}, expected "
                f"{own[key].dtype}"
            )
    for key in weights:
        if key not in own:
            raise CheckpointError(
                f"checkpoint {origin} does not fit model {model.name!r}: {key} is unknown to it"
            )
    model.load_state_dict(weights)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def verify(path: Path) -> None:
    """Compare the entries of a ``.ckpt``, which is a zip file, with their checksums; torch itself does not look at
    them. Files that are no zip files are left to torch.

    Raises:
        CheckpointError: naming the entry that is not what was written, or is packed, which could hide any size.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"checkpoint {path} is packed: unpack it and save it by torch.save")
            damaged = archive.testzip()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
    if damaged is not None:
        raise CheckpointError(
            f"checkpoint {path} is damaged: {damaged} does not match its checksum; take another copy of the file"
        )


def _read_ckpt(path: Path) -> tuple[Any, Any]:
    verify(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a foreign file's pickle
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset of the zip's index that is outside the file
            raise CheckpointError(f"checkpoint {path} is damaged: it is cut short") from error
        raise CheckpointError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or holds more than plain data and tensors; it is not one of stan's"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict) or not {"weights", "stan"} <= content.keys():
        raise CheckpointError(
            f"checkpoint {path} is not one of stan's: it has no 'stan' and 'weights' entries"
        )
    return content["weights"], content["stan"]


def _read_safetensors(path: Path) -> tuple[Any, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if "stan" not in metadata:
                raise CheckpointError(
                    f"checkpoint {path} is not one of stan's: no 'stan' entry in its metadata"
                )
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        return weights, json.loads(metadata["stan"])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
    except (OverflowError, TypeError, RuntimeError) as error:  # of tensors that no memory holds
        raise CheckpointError(f"checkpoint {path} is damaged: {first_line(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: its metadata is not JSON") from error
