"""What workers of a cluster that ends with its driver are told when they start. Imports nothing: each of them waits."""

import logging

ASKS_THE_DASHBOARD = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
"""Frees a training's place once its controller has died: here the whole cluster ends then. See `cluster.NOWHERE`."""


def hush() -> None:
    """Let this process not speak of the dashboard that it cannot ask."""
    logging.getLogger(ASKS_THE_DASHBOARD).setLevel(logging.CRITICAL)
