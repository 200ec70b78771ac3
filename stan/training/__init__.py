"""Training and fine-tuning on PyTorch Lightning: ``train(config)`` and ``finetune(config)``."""

from stan.training.data_module import ClipsModule
from stan.training.finetune import Gain, finetune
from stan.training.fit import Fit, fit, train
from stan.training.module import DenoisingModule

__all__ = ["ClipsModule", "DenoisingModule", "Fit", "Gain", "finetune", "fit", "train"]
