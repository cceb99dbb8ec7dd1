"""What a run will take, found without loading a model: memory by part and strategy, work, disk, and what to change when it does not fit."""

from flowrl.train.plan.advice import Advice, Change, advise
from flowrl.train.plan.architecture import Architecture, Part, architecture_of, bundled_ids, shared_part
from flowrl.train.plan.cost import RolloutCost, rollout_cost
from flowrl.train.plan.memory import MemoryPart, MemoryPlan, RewardNetwork, Subject, memory_plan
from flowrl.train.plan.passes import Cost, picture_scoring
from flowrl.train.plan.strategies import DDP, FSDP2, Single, Strategy, ZeRO2, read_strategy, usual_strategies
from flowrl.train.plan.work import Work, checkpoint_parts, embedding_bytes, update_work

__all__ = [
    "DDP",
    "FSDP2",
    "Advice",
    "Architecture",
    "Change",
    "Cost",
    "MemoryPart",
    "MemoryPlan",
    "Part",
    "RewardNetwork",
    "RolloutCost",
    "Single",
    "Strategy",
    "Subject",
    "Work",
    "ZeRO2",
    "advise",
    "architecture_of",
    "bundled_ids",
    "checkpoint_parts",
    "embedding_bytes",
    "memory_plan",
    "picture_scoring",
    "read_strategy",
    "rollout_cost",
    "shared_part",
    "update_work",
    "usual_strategies",
]
