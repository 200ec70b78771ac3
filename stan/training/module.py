"""The Lightning module: degrades clean clips, runs the network, minimises the loss, keeps NaN out of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from stan import losses
from stan.config import Config, to_dict
from stan.data import degradation
from stan.data.noise import PerClip, TorchRandom, build, entropy, parse_sigma
from stan.data.pairs import RECORDED
from stan.data.sources import takes_noisy
from stan.models import Trained, VideoDenoiser
from stan.models.checkpoint import describe
from stan.training.conditions import Condition
from stan.training.ema import moving_average
from stan.training.optimizer import fitted_state, named_groups, rate_factor

REPLAYED_ENDS = 1 / 8
"""Share of the replayed clips with exactly the lowest of a range of old levels; as many get the highest. The ends,
sigma 0 above all, are what a network forgets first."""


class DenoisingModule(pl.LightningModule):
    """Trains a :class:`~stan.models.VideoDenoiser` on clean clips that it degrades itself, or on recorded pairs.

    The degradation and noise of a clip are a function of (seed, number of the clip), so that a resumed run continues
    exactly as an uninterrupted one and several processes see what one process with all their clips would. What
    layers draw (stochastic depth) is a function of (seed, step, rank).

    A step whose loss or gradient is not finite changes nothing, on any process: `skipped` says so.

    Args:
        model: the network.
        config: the resolved configuration.
        replay: what earlier trainings undid, for a share of the clips each, so that it is not forgotten.
        optimizer_state: the moments that a fresh run starts from, see `optimizer.fitted_state`; the rates stay ours.

    Attributes:
        best_network: what is validated and used afterwards: the moving average, or the network itself.
        seen: the newest batch: `clean` (uint8), `noisy`, `sigma`, `loss` and `psnr` (dB).
        skipped: whether the newest step was skipped.
        whole: False from where a step begins to change the weights until it is counted.
        gradient_norm: of the newest step, before clipping.
        rate: the learning rate of the newest step.
        starts: at which steps this training was started, and what was changed there.
    """

    def __init__(
        self,
        model: VideoDenoiser,
        config: Config,
        replay: Sequence[Condition] = (),
        optimizer_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.replay = config, tuple(replay)
        self.model = model.train()
        self.ema = moving_average(model, config.ema.decay) if config.ema.decay > 0 else None
        self.loss = losses.build(config.loss.name, **config.loss.given)
        self.degradation = degradation.build(config.task, **config.task_settings)
        self.noise = build(config.noise.kind, **config.noise.settings)
        self.sigmas = parse_sigma(config.noise.sigma)
        middle = round((self.sigmas.low + self.sigmas.high) / 2, 3)
        self.validation_sigmas = list(config.validation.sigmas or [middle])
        if takes_noisy(config.data.kind):  # pairs have one level
            self.validation_sigmas = [self.sigmas.low]
        self.seen: dict[str, Tensor] = {}
        self.skipped, self.whole = False, True
        self.gradient_norm = self.rate = 0.0
        self.starts: list[dict[str, Any]] = []
        self._micro_step = 0
        self._optimizer_state = optimizer_state

    @property
    def best_network(self) -> VideoDenoiser:
        """The network with the weights to use: averaged when an average is kept."""
        network = self.model if self.ema is None else self.ema.module
        assert isinstance(network, VideoDenoiser)
        return network

    def ends_step(self, batch_idx: int) -> bool:
        """Whether an optimiser step ends with this batch; others are only accumulated."""
        return (batch_idx + 1) % self.config.trainer.accumulate == 0

    def on_train_start(self) -> None:
        """Hand a kept optimiser state over, unless this run resumes one of its own."""
        state = self._optimizer_state
        if state is not None and self.global_step == 0:
            optimizer = self.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, torch.optim.Optimizer)
            optimizer.load_state_dict(self._fitted(state, optimizer, state.get("names")))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Key the draws that layers take from torch's global generator."""
        self._micro_step = batch_idx % self.config.trainer.accumulate
        low, high, *_ = entropy(
            self.config.seed, "layers", self.global_step, self._micro_step, self.global_rank
        )
        # torch.manual_seed looks for devices of every kind, each time: 2 % of a small network's step.
        torch.default_generator.manual_seed(low | high << 32)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(low | high << 32)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One batch of uint8 clips: clean `(B, T, 3, H, W)`, or pairs `(B, T, 6, H, W)`, clean before noisy."""
        batch, *recorded = batch.split(3, dim=2)
        clean = batch.float() / 255
        random = self._random(len(clean))
        sigma = self.sigmas.draw(random, len(clean))  # (B,)
        worsened = self.degradation.worsened
        noisy = recorded[0].float() / 255 if recorded else worsened(batch, self.noise, sigma, random)
        if self.replay:
            noisy, sigma = self._replayed(batch, noisy, sigma, random.fresh("replay"))
        *early, denoised = self.model.estimates(noisy, sigma=None if self.model.blind else sigma)
        loss = self.loss(denoised.float(), clean)
        for estimate in early:
            loss = loss + self.config.loss.early * self.loss(estimate.float(), clean)
        mse = (denoised.detach().float().clamp(0, 1) - clean).square().flatten(1).mean(1)  # (B,)
        psnr = -10 * torch.log10(mse.clamp_min(1e-10)).mean()
        self.seen = {"clean": batch, "noisy": noisy, "sigma": sigma, "loss": loss.detach(), "psnr": psnr}
        # A loss that is not finite spoils every gradient, of all processes.
        return loss * (1 + 0 * loss.detach())

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Scale gradients down to ``optimizer.clip_norm``; drop them all if one is not finite.

        Gradients are the same on all processes here, and so is the decision.
        """
        self.whole = False
        clip = self.config.optimizer.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.gradient_norm = float(norm)
        self.skipped = not math.isfinite(self.gradient_norm)
        if self.skipped:
            for parameter in self.model.parameters():
                parameter.grad = None  # AdamW leaves parameters without gradient as they are

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and move the average with it: before any callback may write a checkpoint."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.rate = max(group["lr"] for group in optimizer.param_groups)
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None and not self.skipped:
            self.ema.update_parameters(self.model)

    def train(self, mode: bool = True) -> DenoisingModule:
        """Switch the network between training and evaluation; the average always evaluates."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        return self

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and schedule by the step; parameters with factors of their own in groups."""
        options = self.config.optimizer
        groups, self._parameter_names = named_groups(self.model, options.rates, options.lr)
        optimizer = torch.optim.AdamW(
            groups,  # frozen parameters too, which get no gradient
            lr=options.lr,
            betas=(options.betas[0], options.betas[1]),
            weight_decay=options.weight_decay,
            fused=self._fuses() or None,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint usable on its own: the weights to use, architecture and settings."""
        network = self.best_network
        kept = [self.sigmas, *(condition.sigmas for condition in self.replay)]
        network.trained = Trained(
            RECORDED if takes_noisy(self.config.data.kind) else self.config.noise.kind,
            (min(levels.low for levels in kept), max(levels.high for levels in kept)),
            self.global_step,
            self.degradation.task,
            self.degradation.settings,
            self.degradation.scale,
            tuple(condition.to_dict() for condition in self.replay),
        )
        checkpoint["weights"] = network.state_dict()
        checkpoint["stan"] = describe(network, config=to_dict(self.config)) | {"starts": self.starts}
        checkpoint["parameter_names"] = self._parameter_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint fit what this run does otherwise: rates, groups, average, batches a step.

        Batches count from the step, so that a run that stopped inside an accumulated step does all of it again.
        """
        steps = checkpoint["global_step"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = steps * self.config.trainer.accumulate
        for count in (progress["total"], progress["current"]):
            count.update(ready=done, started=done, processed=done, completed=max(0, done - 1))

        factor = self._rate_factor(steps)
        optimizer = self.configure_optimizers()["optimizer"]  # the trainer's is not there yet
        state = self._fitted(checkpoint["optimizer_states"][0], optimizer, checkpoint.get("parameter_names"))
        for group in state["param_groups"]:
            group["lr"] = group["initial_lr"] * factor
        checkpoint["optimizer_states"] = [state]
        rates = [group["initial_lr"] for group in state["param_groups"]]
        checkpoint["lr_schedulers"][0].update(
            base_lrs=rates, _last_lr=[rate * factor for rate in rates], lr_lambdas=[None] * len(rates)
        )

        weights = checkpoint["state_dict"]
        if self.ema is None:
            for key in [key for key in weights if key.startswith("ema.")]:
                del weights[key]
        elif "ema.n_averaged" not in weights:
            weights["ema.n_averaged"] = torch.zeros_like(self.ema.n_averaged)
            for key in self.model.state_dict():
                weights[f"ema.module.{key}"] = weights[f"model.{key}"].clone()

    def _fitted(
        self, state: dict[str, Any], optimizer: torch.optim.Optimizer, names_then: list[str] | None
    ) -> dict[str, Any]:
        """`fitted_state`, of states that do not say their names too: those are in the order of the network."""
        names_then = names_then or [name for name, _ in self.model.named_parameters()]
        return fitted_state(state, optimizer, self._parameter_names, names_then)

    def _fuses(self) -> bool:
        """Whether AdamW changes a tensor in one pass: on a CPU several times as fast, and the same but for rounding.

        It takes tensors as they lie in memory and does not look how, so all must lie plainly; autograd makes gradients
        lie as their parameters do. Not on a GPU, where it would undo the scale of gradients after they were clipped.
        """
        parameters = self.model.parameters()
        return all(p.device.type == "cpu" and p.is_floating_point() and p.is_contiguous() for p in parameters)

    def _rate_factor(self, step: int) -> float:
        return rate_factor(self.config.optimizer, step, self.config.trainer.max_steps)

    def _random(self, clips: int) -> PerClip:
        """The random numbers of this batch's clips, by the numbers that `StepSampler` gave them."""
        batch = self.global_step * self.config.trainer.accumulate + self._micro_step
        first = (batch * self.trainer.world_size + self.global_rank) * clips
        seed = self.config.seed
        return PerClip([TorchRandom(self.device, seed, "train", first + i) for i in range(clips)])

    def _replayed(
        self, clean: Tensor, noisy: Tensor, sigma: Tensor, random: PerClip
    ) -> tuple[Tensor, Tensor]:
        """Give some of the clips their noise and level from earlier trainings."""
        chance, begin = random.uniform((len(clean),)), 0.0
        for condition in self.replay:
            end = begin + condition.share
            back = (chance >= begin) & (chance < end)
            level = condition.sigmas.draw(random, len(clean), ends=REPLAYED_ENDS)
            earlier = condition.degradation.worsened(clean, condition.noise, level, random)
            noisy = torch.where(back[:, None, None, None, None], earlier, noisy)
            sigma, begin = torch.where(back, level, sigma), end
        return noisy, sigma


class StepCallback(Callback):
    """A callback that looks at each batch of a `DenoisingModule`."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand over to `after_batch`."""
        assert isinstance(module, DenoisingModule)
        self.after_batch(trainer, module, module.ends_step(batch_idx))

    def after_batch(self, trainer: pl.Trainer, module: DenoisingModule, ends_step: bool) -> None:
        """Look at the batch, of which `module.seen` tells, and at the optimiser step where it ends one."""
