"""The scripts are no package: they are imported from their folder, and run on tiny data."""

from tiny_training import *  # noqa: F403
