"""Reinforcement learning for generative policies: diffusion and flow matching, pictures and robots on one core."""

__all__ = ["OWNER", "__version__"]

OWNER = "flowrl"  # what tells this package from another one of the same name
__version__ = "0.1.0"
