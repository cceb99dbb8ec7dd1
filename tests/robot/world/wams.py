"""Small jobs that train world-action models; importable beside the tests of this folder."""

from robot.learning import TwoPaths
from robot.world import MixtureOfTransformers, SharedSchedule, StateFrames, WorldActionTraining

NETWORK = MixtureOfTransformers(video_width=16, action_width=16, layers=1, heads=2, head_width=8)


def job(run_dir, **fields):
    """A run that takes milliseconds a step."""
    from flowrl.train import AdamW

    defaults = {
        "demonstrations": TwoPaths(episodes=24),
        "latents": StateFrames(vectors=("state",)),
        "network": NETWORK,
        "schedule": SharedSchedule(steps=3),
        "frames": 2,
        "stride": 2,
        "horizon": 4,
        "execute": 2,
        "steps": 6,
        "batch_size": 8,
        "optimizer": AdamW(lr=1e-3, schedule="cosine", warmup_steps=2),
        "log_every": 2,
        "validate_every": 3,
        "checkpoint_every": 2,
        "name": "small",
    }
    return WorldActionTraining(run_dir=str(run_dir), **(defaults | fields))
