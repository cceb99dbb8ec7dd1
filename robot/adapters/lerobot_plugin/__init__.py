"""Compositions inside LeRobot: ``lerobot-eval --policy.type=gpc``, in LeRobot's environments, with LeRobot's report.

LeRobot imports every installed distribution whose name begins with ``lerobot_policy_`` (``register_third_party_plugins``), and finds the
policy and its processors beside the config by name (``configuration_gpc`` → ``modeling_gpc``, ``processor_gpc``). A wheel cannot carry a
second name, so the distribution is written once, in LeRobot's environment::

    python -m robot.adapters.lerobot_plugin --out lerobot_policy_gpc
    pip install ./lerobot_policy_gpc
    lerobot-eval --policy.type=gpc --policy.members='["path/to/a", "path/to/b"]' --policy.weights='[0.4, 0.6]' --env.type=pusht

Its modules only import these. Nothing here imports LeRobot until LeRobot asks for it.
"""
