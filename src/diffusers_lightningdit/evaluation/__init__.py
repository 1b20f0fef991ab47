# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measures of reconstructions, of generated images, and of how well latents are organised."""
