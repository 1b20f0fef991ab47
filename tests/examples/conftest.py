"""The scripts of the examples are no package: they are imported from their folder, and run on tiny data."""

import sys
from pathlib import Path

from tiny_training import *  # noqa: F403

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
