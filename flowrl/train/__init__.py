"""How training is run: the RL trainer on accelerate, pretraining, evaluation, checkpoints, reports."""

from flowrl.train.evaluation import Evaluation
from flowrl.train.evaluation_result import EvaluationResult
from flowrl.train.optimizer import AdamW, AdamW8bit
from flowrl.train.pretrain import Pretrain
from flowrl.train.settings import UpdateSettings
from flowrl.train.trainer import RLTrainer

__all__ = ["AdamW", "AdamW8bit", "Evaluation", "EvaluationResult", "Pretrain", "RLTrainer", "UpdateSettings"]
