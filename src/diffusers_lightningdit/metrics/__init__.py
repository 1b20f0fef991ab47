# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Metrics: tensors -> numbers. Nothing here imports anything of the package."""
