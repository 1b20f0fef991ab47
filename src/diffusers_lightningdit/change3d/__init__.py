# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Data, losses and metrics of Change3D (arXiv 2503.18803): changes between two images of one place.

A family of its own: it uses the services that do not depend on a model, and nothing of LightningDiT; nothing of
LightningDiT uses it. The network is `models/change3d.py`, its training `training/change3d/`.
"""
