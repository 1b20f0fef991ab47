# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The training of Change3D: settings, data, schedules, validation and the choice of the best weights."""
