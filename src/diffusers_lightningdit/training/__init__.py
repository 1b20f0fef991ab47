# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What both training stages are made of: settings, steps, state, logging."""
