"""What Ray's workers are told when they start on a cluster without a dashboard. Imports nothing: each of them waits."""

import logging

ASKS_THE_DASHBOARD = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
"""Frees a training's place once its controller has died. Without a dashboard it cannot know, and says so each second,
or fails where two clusters run on one machine; a cluster that was started for one driver ends with it."""


def hush() -> None:
    """Let this process not speak of the dashboard that is not there."""
    logging.getLogger(ASKS_THE_DASHBOARD).setLevel(logging.CRITICAL)
