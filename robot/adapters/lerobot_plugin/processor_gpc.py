"""Processors of the ``gpc`` policy: none, for every member has its own; imported by LeRobot alone."""

from __future__ import annotations

from typing import Any

from lerobot.processor import DeviceProcessorStep, PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

__all__ = ["make_gpc_pre_post_processors"]


def make_gpc_pre_post_processors(config: Any, dataset_stats: Any = None) -> tuple[Any, Any]:
    """Pipelines that leave the numbers as they are: members see raw observations and give raw actions.

    Args:
        config: The policy's config.
        dataset_stats: LeRobot passes it; unused.
    """
    del dataset_stats
    before = PolicyProcessorPipeline(steps=[DeviceProcessorStep(device=config.device)], name=POLICY_PREPROCESSOR_DEFAULT_NAME)
    after = PolicyProcessorPipeline(
        steps=[DeviceProcessorStep(device="cpu")],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
