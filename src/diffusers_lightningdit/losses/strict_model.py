# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A model of diffusers that is loaded whole or not at all."""

import os

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin

from ..models import AutoencoderVAVAE


class StrictModel(ModelMixin, ConfigMixin):
    """The base class of the small networks of the losses, which are saved and loaded as every model of diffusers."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs):
        """Load as diffusers does, but refuse files that lack weights of the model.

        In a local folder, diffusers prefers weights in the folder itself to those in `subfolder`. For a model that is
        saved within the folder of an autoencoder, give the path of its own folder instead.

        Raises:
            OSError: Naming the missing weights.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        AutoencoderVAVAE._check_complete(model, info, pretrained_model_name_or_path, kwargs.get("device_map"))
        return (model, info) if output_loading_info else model
