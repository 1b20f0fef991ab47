# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Metrics: functions from tensors to numbers. They import nothing else of the package."""
