"""Policies of other libraries as members of a composition: their networks, encoders and normalisers, composed as they are.

Each adapter takes a host's loaded policy object (duck-typed) and is a :class:`robot.policies.ComposablePolicy`; each source loads one from
disk and imports the host only then. Alone, an adapter runs the host's own sampler; encoders are the host's own, run once per chunk by
stopping its inference at its first query; normalisers are read off the host's own map and must be ``offset + scale·x``.

========================  =====================================================  ==========================================================
adapter                   host                                                   tested against
========================  =====================================================  ==========================================================
``LeRobotDiffusion``      LeRobot ``diffusion``                                  LeRobot 0.4.4 itself (random weights, saved and loaded,
                                                                                 plug-in); stand-in
``LeRobotFlow``           LeRobot ``pi0``, ``pi05``, ``smolvla``                 stand-in after the sources of 0.4.4 and 0.6.2; pi0 and pi05
                                                                                 once by hand against 0.6.2's code, 2 layers of width 32:
                                                                                 equal to the last bit
``StanfordDiffusion``     real-stanford/diffusion_policy, U-Net and transformer  its low-dimensional policies at 5ba07ac with all four
                                                                                 conditionings; stand-in, also for pictures and the
                                                                                 ``.ckpt`` file
``RobomimicDiffusion``    robomimic 0.5 ``DiffusionPolicyUNet``                  robomimic at d309eae, its ``.pth`` file included; stand-in
``DPPODiffusion``         DPPO ``DiffusionModel`` and fine-tuned relatives       DPPO at cc7234a, its evaluation config included; stand-in
``ReinFlowPolicy``        ReinFlow ``ReFlow``                                    ReinFlow at aed2819, its evaluation config included;
                                                                                 stand-in
``OpenPiFlow``            openpi ``PI0Pytorch`` (π0, π0.5)                       stand-in after the source at 15a9616
========================  =====================================================  ==========================================================

Stand-ins (``tests/robot/adapters/standins_*.py``) have the real class, method and argument names, shapes, schedules and loops, and tiny
networks. The tests against the hosts run where these can be imported: put clones of diffusion_policy, robomimic, DPPO or ReinFlow on
PYTHONPATH (the last two one at a time: both call their package ``model``), or LeRobot in its environment, and run
``pytest tests/robot/adapters``.

Pickles and hydra configs run code when they are loaded: they need ``trust_checkpoint: true``. What no adapter can compose is refused
with the reason: ACT, VQ-BeT, TD-MPC, π0-FAST and SAC have no Gaussian path, EVO-1 starts from uniform noise, X-VLA mixes in one fixed
noise, and a schedule that does not end at noise biases every sample.

:mod:`robot.adapters.lerobot_plugin` puts compositions into ``lerobot-eval``.
"""

from robot.adapters.diffusion_policy import DiffusionPolicyCheckpoint, StanfordDiffusion
from robot.adapters.dppo import DPPOCheckpoint, DPPODiffusion
from robot.adapters.hydra_hosts import MinMax
from robot.adapters.lerobot import LeRobotDiffusion, LeRobotFlow, LeRobotPolicyFile, adapt_lerobot
from robot.adapters.openpi import OpenPiCheckpoint, OpenPiFlow
from robot.adapters.reinflow import ReinFlowCheckpoint, ReinFlowPolicy
from robot.adapters.robomimic import RobomimicCheckpoint, RobomimicDiffusion
from robot.adapters.trust import with_trust

__all__ = [
    "DPPOCheckpoint",
    "DPPODiffusion",
    "DiffusionPolicyCheckpoint",
    "LeRobotDiffusion",
    "LeRobotFlow",
    "LeRobotPolicyFile",
    "MinMax",
    "OpenPiCheckpoint",
    "OpenPiFlow",
    "ReinFlowCheckpoint",
    "ReinFlowPolicy",
    "RobomimicCheckpoint",
    "RobomimicDiffusion",
    "StanfordDiffusion",
    "adapt_lerobot",
    "with_trust",
]
