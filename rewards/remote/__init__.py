"""A reward that lives on a server: the client, and the wire format that it shares with `rewards.server`."""

from rewards.remote.client import RemoteReward

__all__ = ["RemoteReward"]
