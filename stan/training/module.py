"""The Lightning module: adds noise, runs the network, minimises the loss, validates the averaged weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from stan import losses
from stan.config import Config, to_dict
from stan.data.noise import TorchRandom, build, entropy, parse_sigma
from stan.models import Trained, VideoDenoiser
from stan.models.checkpoint import describe
from stan.training.ema import moving_average
from stan.training.schedule import learning_rate_factor
from stan.training.validation import Score, ValidationClip, score, validation_sigmas


class DenoisingModule(pl.LightningModule):
    """Trains a :class:`~stan.models.VideoDenoiser` on clean clips to which it adds noise itself.

    Every draw of a step (noise, noise level, stochastic depth) is a function of (seed, step, rank), so that a
    resumed run continues exactly as an uninterrupted one.

    Args:
        model: the network.
        config: the resolved configuration.

    Attributes:
        best_network: what is validated and used afterwards: the moving average, or the network itself.
        shown: the newest validation scores of the first clips, (clip, sigma, score), for pictures.
    """

    SHOWN_CLIPS = 2

    def __init__(self, model: VideoDenoiser, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.ema = moving_average(model, config.ema.decay) if config.ema.decay > 0 else None
        self.loss = losses.build(config.loss.name, **config.loss.given)
        self.noise = build(config.noise.kind, **config.noise.settings)
        self.sigmas = parse_sigma(config.noise.sigma)
        self.validation_sigmas = validation_sigmas(config, self.sigmas.low, self.sigmas.high)
        self.shown: list[tuple[ValidationClip, float, Score]] = []
        self._micro_step = 0
        self._optimizer_state: dict[str, Any] | None = None

    def start_optimizer_from(self, state: dict[str, Any]) -> None:
        """Let a fresh run start from the moments of ``state``, an AdamW state dict; the rates stay ours."""
        self._optimizer_state = state

    @property
    def best_network(self) -> VideoDenoiser:
        """The network with the weights to use: averaged when an average is kept."""
        network = self.model if self.ema is None else self.ema.module
        assert isinstance(network, VideoDenoiser)
        return network

    def on_train_start(self) -> None:
        """Hand a kept optimiser state over, unless this run resumes one of its own."""
        if self._optimizer_state is not None and self.global_step == 0:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": self._optimizer_state["state"], "param_groups": groups})

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Key the draws of this batch, those that layers take from torch's global generator included."""
        self._micro_step = batch_idx % self.config.trainer.accumulate
        low, high, *_ = entropy(
            self.config.seed, "layers", self.global_step, self._micro_step, self.global_rank
        )
        torch.manual_seed(low | high << 32)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One batch of clean uint8 clips `(B, T, 3, H, W)`."""
        clean = batch.float() / 255
        random = TorchRandom(
            self.device, self.config.seed, "train", self.global_step, self._micro_step, self.global_rank
        )
        sigma = self.sigmas.draw(random, len(clean))  # (B,)
        noisy = self.noise(clean, sigma, random)
        *early, denoised = self.model.estimates(noisy, sigma=None if self.model.blind else sigma)
        loss = self.loss(denoised.float(), clean)
        for estimate in early:
            loss = loss + self.config.loss.early * self.loss(estimate.float(), clean)
        mse = (denoised.detach().float().clamp(0, 1) - clean).square().flatten(1).mean(1)  # (B,)
        self.log("train/loss", loss, batch_size=len(clean))
        self.log("train/psnr", -10 * torch.log10(mse.clamp_min(1e-10)).mean(), batch_size=len(clean))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and move the average with it: before any callback may write a checkpoint."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def train(self, mode: bool = True) -> DenoisingModule:
        """Switch the network between training and evaluation; the average always evaluates."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        return self

    def on_validation_epoch_start(self) -> None:
        """Forget the pictures of the last validation."""
        self.shown = []

    def validation_step(self, clip: ValidationClip, batch_idx: int) -> None:
        """Score the averaged network on one clip, at every level, and log the means over levels and clips."""
        scores = []
        for sigma in self.validation_sigmas:
            result = score(self.best_network, clip, sigma, self.noise, self.config.seed, self.device)
            if batch_idx < self.SHOWN_CLIPS:
                self.shown.append((clip, sigma, result))
            scores.append(result)
        for name in ("psnr", "ssim", "psnr_noisy"):
            value = sum(getattr(result, name) for result in scores) / len(scores)
            self.log(f"val/{name}", value, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and schedule by the step."""
        options = self.config.optimizer
        optimizer = torch.optim.AdamW(
            self.model.parameters(),  # frozen ones too, which get no gradient: places in the state stay put
            lr=options.lr,
            betas=(options.betas[0], options.betas[1]),
            weight_decay=options.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                step,
                total=self.config.trainer.max_steps,
                warmup=options.warmup_steps,
                final=options.final_lr / options.lr if options.lr else 0.0,
                cosine=options.schedule == "cosine",
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint usable on its own: the weights to use, architecture and settings."""
        network = self.best_network
        network.trained = Trained(
            self.config.noise.kind, (self.sigmas.low, self.sigmas.high), self.global_step
        )
        checkpoint["weights"] = network.state_dict()
        checkpoint["stan"] = describe(network, config=to_dict(self.config))
