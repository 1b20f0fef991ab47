# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Files and Hub: what all models of the package do beyond diffusers when they are loaded, saved and uploaded.

As remote code, a component of a pipeline is one file, which cannot import another: a model is saved with this file put
into its own (`self_contained`). The files of several models then run in one module, one after the other.
"""

import inspect
import math
import os
import re
import shutil
import types
import typing
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin  # in diffusers.loaders with transformers alone
from diffusers.utils import get_adapter_name

# The source code is read on import and not when a model is saved, since as remote code it may be overwritten by then.
MODEL_MIXIN_CODE = __spec__.loader.get_source(__name__)


def self_contained(code: str) -> str:
    """Return the code of a model's file with this file in place of the import of it."""
    return re.sub(r"^from \.model_mixin import .*\n", lambda _: MODEL_MIXIN_CODE, code, flags=re.MULTILINE)


LARGEST_NUMBER = 1_000_000  # in a config: of widths, layers, classes


def _is_value_of(value: object, annotation: object) -> bool:
    """Whether a value that was read from JSON is one of a type, such as `list[float] | None`."""
    kinds = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return any(_is_value_of(value, kind) for kind in kinds)
    if typing.get_origin(annotation) in (tuple, list):
        return isinstance(value, (tuple, list)) and all(_is_value_of(entry, kinds[0]) for entry in value)
    if annotation is int:
        return type(value) is int and 0 <= value <= LARGEST_NUMBER
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


class LightningDiTModelMixin:
    """Models that are loaded whole or not at all, and saved with their code.

    A class may have its code in `_source_code`, its model card in `_model_card`, a text with the fields `title` and
    `repository`, and in `_foreign_configs` the names of classes whose config.json may have keys that it does not know.
    """

    _model_card: str | None = None
    _foreign_configs: tuple[str, ...] = ()

    # -- Loading ---------------------------------------------------------------------------------------------------

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
        """Read a config as diffusers does, but refuse unknown keys, which diffusers would ignore, and wrong values.

        Raises:
            ValueError: Naming the keys of a config.json that are not arguments of this class, or a value of another
                type than the argument's.
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
        for name, argument in inspect.signature(cls.__init__).parameters.items():
            if name in config_dict and not _is_value_of(config_dict[name], argument.annotation):
                kind = getattr(argument.annotation, "__name__", argument.annotation)
                raise ValueError(
                    f"config.json of {cls.__name__} has `{name}` {str(config_dict[name])[:100]!r}; required: {kind}, "
                    f"finite, and whole numbers from 0 to {LARGEST_NUMBER}."
                )
        return super().extract_init_dict(config_dict, **kwargs)

    # -- Saving ----------------------------------------------------------------------------------------------------

    def check_saving(self, save_directory: str | os.PathLike) -> None:
        """Raise ValueError if the model cannot be saved to a folder and read back, before anything is written."""
        if Path(save_directory).is_file():
            raise ValueError(f"`save_directory` is {str(save_directory)!r}, a file; required: a folder.")
        if any(".base_layer." in name for name, _ in self.named_parameters()):
            loaded = ", ".join(map(repr, getattr(self, "peft_config", {})))
            raise ValueError(
                f"{type(self).__name__} has LoRAs loaded ({loaded}), which are no weights of the model; required: "
                "unload them before saving, after `fuse_lora` if they are to stay."
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs,
    ) -> None:
        """Save as diffusers does, but as the only weights of this variant in the folder.

        All files are written before the first of them replaces another one.

        Raises:
            ValueError: If a LoRA is loaded, or the folder is a file.
        """
        self.check_saving(save_directory)
        folder = Path(save_directory)
        partial = folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
        partial.mkdir(parents=True)
        if push_to_hub:
            kwargs.setdefault("repo_id", folder.name)
        try:
            super().save_pretrained(
                partial,
                is_main_process=is_main_process,
                save_function=save_function,
                safe_serialization=safe_serialization,
                variant=variant,
                max_shard_size=max_shard_size,
                push_to_hub=push_to_hub,
                use_flashpack=use_flashpack,
                **kwargs,
            )
            if not safe_serialization and any(".index." in file.name for file in partial.iterdir()):
                raise ValueError(
                    f"`max_shard_size` is {max_shard_size!r}, less than the model, with `safe_serialization=False`; "
                    "required: one file, since diffusers reads no pickled shards."
                )
            (partial / "mode").touch()
            mode = (partial / "mode").stat().st_mode  # that of new files; safetensors makes its own private
            (partial / "mode").unlink()
            # The index comes last, and goes first: of several sets, diffusers reads the one with an index.
            new = sorted(partial.iterdir(), key=lambda file: (".index." in file.name, file.name))
            for file in new:
                file.chmod(mode)
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if is_main_process and not use_flashpack:
            of_variant = f"\\.{re.escape(variant)}" if variant else ""
            weights = rf"{of_variant}(-\d+-of-\d+)?\.(safetensors|bin)|\.\w+\.index{of_variant}\.json"
            old = [file for file in folder.iterdir() if re.fullmatch(f"diffusion_pytorch_model({weights})", file.name)]
            for file in sorted(old, key=lambda file: ".index." not in file.name):
                if file.name not in {file.name for file in new}:
                    file.unlink()

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

    # -- Original checkpoints --------------------------------------------------------------------------------------

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: str | dict | None = None, **kwargs):
        """Load a file of the original implementation; this needs the package diffusers_lightningdit.

        Without `config` and `original_config` the architecture is derived from the weights, where diffusers alone would
        fetch the configuration of an unrelated model. `latents_mean`, `latents_std` and `scaling_factor` of an
        autoencoder may be given beside it, and of a transformer `weights`, `num_attention_heads` and
        `internal_guidance_layer`, as `load_transformer` has them.

        Raises:
            ValueError: For a file that holds Python objects beside its weights, and for other weights.
        """
        if kwargs.get("config") is None and kwargs.get("original_config") is None:
            kwargs["original_config"] = {}
        try:
            return super().from_single_file(pretrained_model_link_or_path_or_dict, **kwargs)
        except OSError as error:
            cause, code = error, None
            while cause is not None and code is None:
                code = re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", str(cause), re.IGNORECASE)
                cause = cause.__cause__ or cause.__context__
            if code is None:
                raise
            raise ValueError(
                f"{pretrained_model_link_or_path_or_dict}: contains the Python object {code[1]}; required: tensors and "
                "plain values only, because loading anything else can run code."
            ) from error

    # -- LoRA ------------------------------------------------------------------------------------------------------

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict, prefix: str | None = "transformer", hotswap: bool = False, **kwargs
    ) -> None:
        """Load a LoRA as diffusers does, but whole or not at all: after an error, the model is as it was before.

        diffusers alone would drop weights without a place with a warning, and leave missing ones uninitialised.

        Raises:
            ValueError: For a LoRA without weights, and naming the first weight that has no place in the model, lacks
                its other matrix or is not finite.
        """
        state_dict, metadata = self._read_lora(pretrained_model_name_or_path_or_dict, kwargs)
        self._check_lora(state_dict, prefix)
        adapter_name = kwargs.pop("adapter_name", None) or get_adapter_name(self)
        before = list(getattr(self, "peft_config", {}))
        try:
            super().load_lora_adapter(
                state_dict,
                prefix=prefix,
                hotswap=hotswap,
                adapter_name=adapter_name,
                metadata=metadata or None,
                **kwargs,
            )
        except Exception as error:
            if not before:
                super().unload_lora()
            elif adapter_name not in before:
                super().delete_adapters(adapter_name)
            if hotswap or isinstance(error, ValueError):
                raise
            text = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"The LoRA {adapter_name!r} cannot be loaded by PEFT: {text}") from error

    @staticmethod
    def _read_lora(source: str | os.PathLike | dict, kwargs: dict) -> tuple[dict[str, torch.Tensor], dict]:
        """Return (weights, metadata) of a LoRA; what names its file is taken out of `kwargs`."""
        metadata = kwargs.pop("metadata", None)
        of_file = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder",
                   "weight_name", "use_safetensors")  # fmt: skip
        settings = {name: kwargs.pop(name) for name in of_file if name in kwargs}
        if not isinstance(source, dict):
            place = os.path.join(str(source), str(settings.get("weight_name") or ""))
            try:
                source, found = SanaLoraLoaderMixin.lora_state_dict(source, return_lora_metadata=True, **settings)
            except Exception as error:  # a damaged file raises nearly anything
                # diffusers says well that a file is missing, here or on the Hub
                if isinstance(error, ValueError) or not os.path.lexists(place):
                    raise
                text = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"{place} cannot be read as a LoRA ({text}); required: a sound file.") from error
            metadata = metadata or found
        return dict(source), dict(metadata or {})

    def _check_lora(self, state_dict: dict[str, torch.Tensor], prefix: str | None) -> None:
        start = f"{prefix}." if prefix is not None else ""
        modules = {start + name: module for name, module in self.named_modules()}
        model = type(self).__name__
        matrices: dict[str, dict[str, torch.Tensor]] = {}

        def refuse(key: str, problem: str) -> None:
            raise ValueError(
                f"LoRA weight `{key}`: {problem}; required: a LoRA trained for this architecture, with keys "
                f"`{start}<module>.lora_A.weight` and `lora_B.weight`."
            )

        for key, weight in state_dict.items():
            if not key.startswith(start) and key.startswith(("transformer.", "vae.")):
                continue  # another component's
            # PEFT's names, older ones, biases and magnitudes, and the factors of LoKr
            match = re.fullmatch(
                r"(.+)\.(?:lora(?:_linear_layer)?[._](A|B|down|up)(?:\.(weight|bias))?|"
                r"(lora_magnitude_vector)(?:\.weight)?|lokr_(\w+)|(alpha))",
                key,
            )
            if match is None or match[1] not in modules:
                refuse(key, f"{model} has no module `{match[1] if match else key}`")
            module, name, kind, *others = match.groups()
            if not torch.isfinite(weight).all():
                refuse(key, "it has values that are NaN or infinite")
            parts = matrices.setdefault(module, {})
            if name is None or kind != "weight":
                parts |= {other: weight for other in others if other is not None}
                continue
            is_input = name in ("A", "down")
            parts["input" if is_input else "output"] = weight
            # A layer with an adapter returns the width of its own layer.
            names = ("in_features", "in_channels") if is_input else ("out_features", "out_channels")
            width = next((getattr(modules[module], name) for name in names if hasattr(modules[module], name)), None)
            if weight.ndim < 2 or (width is not None and weight.shape[is_input] != width):
                found = weight.shape[is_input] if weight.ndim > 1 else f"a tensor of shape {list(weight.shape)}"
                refuse(key, f"{model} has {'in' if is_input else 'out'}put width {width} there, not {found}")
        if not matrices:
            raise ValueError(
                f"The LoRA has no weights of {model}; required: keys `{start}<module>.lora_A.weight` and "
                "`lora_B.weight`."
            )
        for module, parts in matrices.items():
            if parts.keys() & {"w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b"}:
                pairs = [{f"w{i}"} <= parts.keys() or {f"w{i}_a", f"w{i}_b"} <= parts.keys() for i in (1, 2)]
                if not all(pairs):
                    refuse(module, "one of its factors `lokr_w1` and `lokr_w2` is missing")
            elif not {"input", "output"} <= parts.keys():
                refuse(module, "one of its matrices `lora_A` and `lora_B` is missing")
            elif parts["input"].shape[0] != parts["output"].shape[1]:
                ranks = f"{parts['input'].shape[0]} and {parts['output'].shape[1]}"
                refuse(module, f"its matrices have the ranks {ranks}, which differ")
            elif "alpha" in parts:
                refuse(f"{module}.alpha", "diffusers does not use it")

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete LoRAs as diffusers does; after the last of them, the model is as it was before the first."""
        super().delete_adapters(adapter_names)
        if not getattr(self, "peft_config", None):
            super().unload_lora()
