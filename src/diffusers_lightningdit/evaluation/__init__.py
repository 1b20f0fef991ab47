# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Evaluation of generated images, of reconstructions, and of latents."""
