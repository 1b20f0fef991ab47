# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The parts that both training stages share: settings, steps, state, logging."""
