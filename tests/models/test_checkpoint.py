"""Checkpoints: what is saved is what is loaded; anything else is one clear line."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import stan
import stan.models
from stan.errors import CheckpointError, ConfigError
from stan.models import Trained, VideoDenoiser
from stan.models.attention import SpaceTimeAttention

TINY: dict[str, Any] = {"channels": (8, 8), "heads": (1, 0), "value_channels": 4, "key_channels": 4}
FORMATS = [".ckpt", ".safetensors"]


@pytest.fixture
def model() -> VideoDenoiser:
    model = stan.models.build("unet_tiny", blind=True, **TINY)
    model.trained = Trained("gaussian", (0.0, 50.0), 300)
    return model


@pytest.mark.parametrize("ending", FORMATS)
def test_round_trip(tmp_path: Path, model: VideoDenoiser, ending: str) -> None:
    config = {"seed": 3, "noise": {"sigma": [0, 50]}}
    path = stan.models.save(model, tmp_path / f"model{ending}", config)
    loaded = stan.load(path)
    assert not loaded.training
    assert (loaded.name, loaded.settings, loaded.trained) == (model.name, model.settings, model.trained)
    assert stan.models.read(path)[1]["config"] == config
    video = torch.rand(1, 5, 3, 18, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(video), model.eval()(video))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["stan", "unet_small", "unet_tiny"])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_network_is_found_from_the_file_alone(tmp_path: Path, name: str, ending: str) -> None:
    model = stan.models.build(name, flow="farneback", flow_settings={"window": 9}, temporal_window=1)
    loaded = stan.models.load(stan.models.save(model, tmp_path / f"x{ending}"))
    assert loaded.settings == model.settings
    assert loaded.source.settings == model.source.settings
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, model: VideoDenoiser, ending: str, value: float
) -> None:
    key, weight = next(reversed([*model.named_parameters()]))
    with torch.no_grad():
        weight.view(-1)[-1] = value
    path = stan.models.save(model, tmp_path / f"model{ending}")
    with pytest.raises(CheckpointError, match=f"{key} holds values that are not finite") as caught:
        stan.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_learned_scale_keeps_its_name_and_place() -> None:
    """Files and optimiser states of before the scale moved into `ops.Weights` still fit."""
    model = stan.models.build("unet_small", flow="zero")
    attentions = [module for module in model.modules() if isinstance(module, SpaceTimeAttention)]
    names = [name for name in model.state_dict() if "log_scale" in name]
    assert len(names) == len(attentions) > 0
    assert all(name.endswith(".attention.log_scale") for name in names)
    assert all(next(iter(module.parameters())) is module.weights.log_scale for module in attentions)
    weights = {k: torch.full_like(v, 3) if "log_scale" in k else v for k, v in model.state_dict().items()}
    for network in (model, copy.deepcopy(model)):
        network.load_state_dict(weights)
        for module in network.modules():
            if isinstance(module, SpaceTimeAttention):
                assert module.weights.log_scale is not None
                assert (module.weights.log_scale == 3).all()


def test_record_is_plain_data(model: VideoDenoiser) -> None:
    record = stan.models.describe(model)
    assert json.loads(json.dumps(record)) == record
    assert record["format"] == 2
    assert record["version"] == stan.__version__
    assert record["trained"] == {"kind": "gaussian", "sigma": [0.0, 50.0], "steps": 300}


def test_a_lightning_checkpoint_is_read(tmp_path: Path, model: VideoDenoiser) -> None:
    """Whatever else the trainer keeps in the file does not matter."""
    content = {
        "state_dict": {"network.enter.weight": torch.zeros(1)},
        "optimizer_states": [{"lr": 0.1}],
        "weights": model.state_dict(),
        "stan": stan.models.describe(model),
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert stan.load(tmp_path / "last.ckpt").settings == model.settings


def break_file(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "head": whole[:20],
            "empty": b"",
            "noise": bytes(range(256)) * 40,
            "text": b"not a checkpoint at all\n" * 30,
        }[damage]
    )


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("damage", ["cut", "head", "empty", "noise", "text"])
def test_damaged_files(tmp_path: Path, model: VideoDenoiser, ending: str, damage: str) -> None:
    path = stan.models.save(model, tmp_path / f"model{ending}")
    break_file(path, damage)
    with pytest.raises(CheckpointError) as caught:
        stan.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", FORMATS)
def test_missing_file_and_folder(tmp_path: Path, ending: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        stan.load(tmp_path / f"none{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        stan.load(tmp_path / f"folder{ending}")


def test_foreign_files(tmp_path: Path, model: VideoDenoiser) -> None:
    weights = model.state_dict()
    torch.save({"state_dict": weights}, tmp_path / "other.ckpt")
    torch.save(weights["enter.weight"], tmp_path / "tensor.ckpt")
    safetensors.torch.save_file(weights, tmp_path / "other.safetensors")
    for name in ("other.ckpt", "tensor.ckpt", "other.safetensors"):
        with pytest.raises(CheckpointError, match="not one of stan's"):
            stan.load(tmp_path / name)


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"weights": {}, "stan": Payload(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for name in ("evil.ckpt", "pickle.ckpt"):
        with pytest.raises(CheckpointError, match="plain data"):
            stan.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def rewritten(path: Path, of: VideoDenoiser, **changes: Any) -> Path:
    """A checkpoint with some of its parts replaced."""
    record = stan.models.describe(of)
    weights = changes.pop("weights", of.state_dict())
    record.update(changes)
    torch.save({"weights": weights, "stan": record}, path)
    return path


def test_contents_that_do_not_fit(tmp_path: Path, model: VideoDenoiser) -> None:
    weights = model.state_dict()
    named = {"name": model.name, "settings": model.settings}
    fewer = {k: v for k, v in weights.items() if k != "enter.bias"}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("lacks enter.bias", {"weights": fewer}),
        ("extra is unknown", {"weights": {**weights, "extra": torch.zeros(1)}}),
        (
            r"enter.bias has shape \(3,\), expected \(8,\)",
            {"weights": {**weights, "enter.bias": torch.zeros(3)}},
        ),
        ("not a table of tensors", {"weights": [1, 2]}),
        ("cannot be made: model 'stan_tinier'", {"model": {**named, "name": "stan_tinier"}}),
        ("no setting 'colour'", {"model": {**named, "settings": {**model.settings, "colour": 1}}}),
        ("description of the model", {"model": None}),
        ("cannot be made", {"model": {"name": "stan"}}),
        ("cannot be made", {"trained": {"kind": "gaussian"}}),
        ("update it", {"format": 3}),
        ("update it", {"format": None}),
    ]
    for i, (message, change) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message) as caught:
            stan.load(rewritten(tmp_path / f"{i}.ckpt", model, **change))
        assert "\n" not in str(caught.value)


def test_other_settings_where_the_weights_fit(tmp_path: Path) -> None:
    small = {"channels": [4, 4], "depths": [1, 1], "features": 2}
    model = stan.models.build("stan_tiny", **small)
    model.trained = Trained("gaussian", (0.0, 50.0), 3)
    path = stan.models.save(model, tmp_path / "m.ckpt")
    other = stan.load(path, temporal_window=5, window=1)
    assert other.settings == {**model.settings, "temporal_window": 5, "window": 1}
    assert (other.temporal_reach, other.trained, other.training) == (5, model.trained, False)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    assert stan.load(path).settings == model.settings
    with pytest.raises(CheckpointError, match=r"m\.ckpt with features=3 does not fit model 'stan_tiny'"):
        stan.load(path, features=3)
    with pytest.raises(ConfigError, match="did you mean 'temporal_window'"):
        stan.load(path, temporal_windo=3)
    with pytest.raises(ConfigError, match="temporal_window=0"):
        stan.load(path, temporal_window=0)


def test_a_part_changes_key_by_key_or_begins_with_its_own_settings(tmp_path: Path) -> None:
    dis = {"preset": "smooth", "blur": 0.4}
    small = {"channels": [4, 4], "depths": [1, 1], "features": 2, "flow_settings": dis}
    path = stan.models.save(stan.models.build("stan_tiny", **small), tmp_path / "m.ckpt")

    def source(**changes: Any) -> tuple[str, dict[str, Any]]:
        settings = stan.load(path, **changes).settings
        return settings["flow"], settings["flow_settings"]

    name, own = source()
    assert (name, own | dis) == ("dis", own)
    assert source(flow_settings={"blur": 0}) == source(flow="dis", flow_settings={"blur": 0})
    assert source(flow_settings={"blur": 0}) == ("dis", own | {"blur": 0.0})
    assert source(flow_settings={}) == source(temporal_window=2) == source()
    assert source(flow="zero") == ("zero", {})
    farneback = stan.models.build("stan_tiny", flow="farneback", flow_settings={"window": 9}).settings
    assert source(flow="farneback", flow_settings={"window": 9}) == ("farneback", farneback["flow_settings"])
    with pytest.raises(ConfigError, match="no setting 'preset'"):
        source(flow="zero", flow_settings={"preset": "fast"})
    for untrained in ("learned", "steady"):
        with pytest.raises(CheckpointError, match=f"no weights of flow={untrained}, .*trained with flow=dis"):
            source(flow=untrained, flow_settings={"channels": 2})


def test_settings_of_a_part_of_a_part_change_key_by_key(tmp_path: Path) -> None:
    small = {"channels": [4, 4], "depths": [1, 1], "features": 2, "flow": "steady"}
    base = {"preset": "smooth", "blur": 0.4}
    model = stan.models.build("stan_tiny", **small, flow_settings={"base_settings": base, "channels": 4})
    path = stan.models.save(model, tmp_path / "m.ckpt")
    settings = stan.load(path, flow_settings={"base_settings": {"blur": 0}}).settings["flow_settings"]
    assert (settings["channels"], settings["base_settings"]["preset"]) == (4, "smooth")
    assert settings["base_settings"]["blur"] == 0
    other = stan.load(path, flow_settings={"base": "zero"}).settings["flow_settings"]
    assert (other["base"], other["base_settings"], other["channels"]) == ("zero", {}, 4)


def test_other_endings_and_unwritable_places(tmp_path: Path, model: VideoDenoiser) -> None:
    with pytest.raises(CheckpointError, match="must end in"):
        stan.models.save(model, tmp_path / "model.pth")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        stan.models.save(model, tmp_path / "file" / "model.ckpt")


@pytest.mark.parametrize("ending", FORMATS)
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, model: VideoDenoiser, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stan.models.save(model, tmp_path / f"model{ending}")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CheckpointError, match="No space left"):
        stan.models.save(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_trained_record() -> None:
    trained = Trained("poisson", (5, 55), 10)
    assert (trained.low, trained.high) == (5, 55)
    assert Trained.from_dict(trained.to_dict()) == trained


def test_a_checkpoint_of_format_1_keeps_its_network(tmp_path: Path) -> None:
    """`stan_tiny` was another network then."""
    model = stan.models.build("unet_tiny", **TINY)
    record = {**stan.models.describe(model), "format": 1}
    record["model"] = {**record["model"], "name": "stan_tiny"}
    torch.save({"weights": model.state_dict(), "stan": record}, tmp_path / "old.ckpt")
    loaded = stan.models.load(tmp_path / "old.ckpt")
    assert loaded.name == "unet_tiny"
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
