"""The reward server: a heavy or awkward reward in an environment, or on a machine, of its own. The client is `rewards.remote.RemoteReward`.

Importing this package imports no web framework; starting a server does (``pip install 'flowrl-torch[server]'``).
"""

from rewards.remote.limits import Limits
from rewards.server.server import RewardServer

__all__ = ["Limits", "RewardServer"]
