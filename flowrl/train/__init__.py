"""How training is run: the RL trainer on accelerate, pretraining, evaluation, checkpoints, reports."""

from flowrl.train.evaluation import Evaluation
from flowrl.train.evaluation_result import EvaluationResult
from flowrl.train.optimizer import AdamW
from flowrl.train.pretrain import Pretrain
from flowrl.train.settings import UpdateSettings
from flowrl.train.trainer import RLTrainer

__all__ = ["AdamW", "Evaluation", "EvaluationResult", "Pretrain", "RLTrainer", "UpdateSettings"]
