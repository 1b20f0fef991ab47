# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Files and Hub: what all models of the package do beyond diffusers when they are loaded, saved and uploaded.

As remote code, a component of a pipeline is one file, which cannot import another: a model is saved with this file put
into its own (`self_contained`). The files of several models then run in one module, one after the other.
"""

import inspect
import os
import re
from pathlib import Path

import torch

# The source code is read on import and not when a model is saved, since as remote code it may be overwritten by then.
MODEL_MIXIN_CODE = __spec__.loader.get_source(__name__)


def self_contained(code: str) -> str:
    """Return the code of a model's file with this file in place of the import of it."""
    return re.sub(r"^from \.model_mixin import .*\n", lambda _: MODEL_MIXIN_CODE, code, flags=re.MULTILINE)


class LightningDiTModelMixin:
    """Models that are loaded whole or not at all, and saved with their code.

    A class may have its code in `_source_code`, its model card in `_model_card`, a text with the fields `title` and
    `repository`, and in `_foreign_configs` the names of classes whose config.json may have keys that it does not know.
    """

    _model_card: str | None = None
    _foreign_configs: tuple[str, ...] = ()

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """Load as diffusers does, but say so if the Hub is out of reach; diffusers says that the file is missing."""
        try:
            return super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        except OSError as error:
            if type(error.__context__).__name__ != "LocalEntryNotFoundError":
                raise
            raise OSError(
                f"Cannot load {pretrained_model_name_or_path}: not in the cache, and the Hub is offline or out of "
                "reach; required: a network connection, a folder, or a repository that was loaded before."
            ) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs):
        """Load as diffusers does, but refuse files that lack weights of the model.

        In a local folder, diffusers prefers weights in the folder itself to those in `subfolder`. For a model that is
        saved within the folder of another, give the path of its own folder instead.

        Raises:
            OSError: Naming the missing weights.
        """
        if kwargs.get("use_flashpack", False):  # a format that is checked while it is read
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        cls._check_complete(model, info, pretrained_model_name_or_path, kwargs.get("device_map"))
        return (model, info) if output_loading_info else model

    @staticmethod
    def _check_complete(model: torch.nn.Module, info: dict, source: str | os.PathLike, device_map=None) -> None:
        """Raise OSError for missing weights, which diffusers leaves uninitialised with no more than a warning."""
        missing = set(info["missing_keys"])
        if device_map is None:  # weights that the index names, but that are in none of the shards
            missing |= {name for name, parameter in model.named_parameters() if parameter.is_meta}
        if missing:
            raise OSError(
                f"The weights in {source} lack {len(missing)} tensors of {type(model).__name__}, first "
                f"`{min(missing)}`; required: all. A file is damaged, or config.json is another model's."
            )

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **kwargs) -> tuple[dict, dict, dict]:
        """Read a config as diffusers does, but refuse unknown keys, which diffusers would ignore.

        Raises:
            ValueError: Naming the keys of a config.json that are not arguments of this class.
        """
        # diffusers' EMAModel adds its settings to the config.json that it saves.
        ema = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
        known = {*inspect.signature(cls.__init__).parameters, "auto_map", "quantization_config", *ema}
        unknown = sorted(key for key in config_dict if key not in known and not key.startswith("_"))
        if unknown and config_dict.get("_class_name") not in cls._foreign_configs:
            raise ValueError(
                f"config.json of {cls.__name__} has the unknown key {', '.join(map(repr, unknown))}; required: only "
                f"arguments of the class, {', '.join(inspect.signature(cls).parameters)}. A newer version may know it."
            )
        return super().extract_init_dict(config_dict, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save the config, and after `register_for_auto_class()`, or loaded from such a folder, the code beside it."""
        cls = type(self)
        if (self._auto_class or "auto_map" in self.config) and vars(cls).get("_source_code"):
            module = cls.__module__.rpartition(".")[2]
            self.register_to_config(auto_map={"AutoModel": f"{module}.{cls.__name__}"})
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            Path(save_directory, f"{module}.py").write_text(cls._source_code, encoding="utf-8", newline="\n")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, **kwargs):
        """Replace the generic model card of diffusers, mostly blanks, in the last step of a push."""
        card = Path(working_dir) / "README.md"
        generic = "This model card has been automatically generated."
        if self._model_card and card.is_file() and generic in card.read_text(encoding="utf-8"):
            text = self._model_card.format(title=repo_id.rpartition("/")[2], repository=repo_id)
            card.write_text(text, encoding="utf-8", newline="\n")
        return super()._upload_folder(working_dir, repo_id, **kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: str | dict | None = None, **kwargs):
        """Load a file of the original implementation; this needs the package diffusers_lightningdit.

        Without `config` and `original_config` the architecture is derived from the weights, where diffusers alone would
        fetch the configuration of an unrelated model. `latents_mean`, `latents_std` and `scaling_factor` of an
        autoencoder may be given beside it.
        """
        if kwargs.get("config") is None and kwargs.get("original_config") is None:
            kwargs["original_config"] = {}
        return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)
