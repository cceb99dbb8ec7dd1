"""Acting: robot policies, adapters and environments on the same flow core."""

__all__ = ["OWNER"]

OWNER = "flowrl"  # robotframework also ships a package of this name
