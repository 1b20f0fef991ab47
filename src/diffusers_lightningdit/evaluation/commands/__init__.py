# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The commands of `python -m diffusers_lightningdit.evaluate`, one module each."""
