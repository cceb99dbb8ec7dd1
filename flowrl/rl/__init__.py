"""What is optimised: rewards become advantages, advantages and log-ratios become a loss; and which prompts come next."""

from flowrl.rl.advantages import AdvantageEstimator, GroupAdvantage, MultiGranularityAdvantage, group_advantage
from flowrl.rl.objectives import OBJECTIVES, Objective, PolicyGradient, PPOClip, StepBatch, needs_reference, register_objective
from flowrl.rl.prompt import Prompt, facts_of
from flowrl.rl.prompts import PromptSampler, UniformPrompts
from flowrl.rl.registry import Registry
from flowrl.rl.reward import (
    GroupReward,
    Reward,
    RewardBatch,
    check_prompts,
    check_ready,
    inner_rewards,
    load_reward,
    part_weights,
    prepare_reward,
    submit_scores,
    with_those_within,
)

__all__ = [
    "OBJECTIVES",
    "AdvantageEstimator",
    "GroupAdvantage",
    "GroupReward",
    "MultiGranularityAdvantage",
    "Objective",
    "PPOClip",
    "PolicyGradient",
    "Prompt",
    "PromptSampler",
    "Registry",
    "Reward",
    "RewardBatch",
    "StepBatch",
    "UniformPrompts",
    "check_prompts",
    "check_ready",
    "facts_of",
    "group_advantage",
    "inner_rewards",
    "load_reward",
    "needs_reference",
    "part_weights",
    "prepare_reward",
    "register_objective",
    "submit_scores",
    "with_those_within",
]
