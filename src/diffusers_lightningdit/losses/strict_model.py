# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A model of diffusers that is loaded whole or not at all."""

import os

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin


class StrictModel(ModelMixin, ConfigMixin):
    """What the small networks of the losses inherit; saved and loaded as every model of diffusers."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs):
        """As in diffusers, which would leave weights that the file lacks uninitialised, with no more than a warning.

        Of a local folder, diffusers takes the weights that lie in the folder itself before those in `subfolder`:
        beside an autoencoder's, name the whole path instead.

        Raises:
            OSError: naming the first weight that the file lacks.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            raise OSError(
                f"The weights in {pretrained_model_name_or_path} lack `{min(info['missing_keys'])}` of "
                f"{cls.__name__}; required: all. A file is damaged or another model's."
            )
        return (model, info) if output_loading_info else model
