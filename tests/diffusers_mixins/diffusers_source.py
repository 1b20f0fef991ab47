"""diffusers' own test mixins, from the checkout of diffusers that `DIFFUSERS_SOURCE` names.

They are in no package, only in diffusers' repository: `make test-diffusers` fetches it at the installed version's tag.
Importing this module skips the importing test module where the variable is not set.
"""

import importlib
import os
import re
import sys
from pathlib import Path

import diffusers
import pytest

if not os.environ.get("DIFFUSERS_SOURCE"):
    pytest.skip(
        "needs a checkout of diffusers, named by DIFFUSERS_SOURCE: `make test-diffusers`", allow_module_level=True
    )

SOURCE = Path(os.environ["DIFFUSERS_SOURCE"]).resolve()
VERSION_FILE = SOURCE / "src" / "diffusers" / "__init__.py"
if not VERSION_FILE.is_file():
    raise FileNotFoundError(f"`DIFFUSERS_SOURCE` is {str(SOURCE)!r}; required: a checkout of diffusers.")
VERSION = re.search(r'__version__ = "(.+)"', VERSION_FILE.read_text(encoding="utf-8"))[1]
if diffusers.__version__ != VERSION:
    raise ValueError(f"`DIFFUSERS_SOURCE` holds diffusers {VERSION}; required: the installed {diffusers.__version__}.")

# Their package is called `tests`; this folder's parent, without an `__init__.py`, is none.
sys.path.insert(0, str(SOURCE))
models = importlib.import_module("tests.models.testing_utils")
autoencoders = importlib.import_module("tests.models.autoencoders.testing_utils")
pipelines = importlib.import_module("tests.pipelines.testing_utils")
torch_device = importlib.import_module("tests.testing_utils").torch_device
