"""The layout of SAELens before version 6, which most dictionaries on the Hub have, as that of version 6."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harvest.errors import UserError

RENAMED = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
ABOUT = ("model_name", "hook_name", "dataset_path", "context_size", "prepend_bos", "sae_lens_version")
"""What a `cfg.json` of the new layout has under `metadata`."""


def is_old(cfg: Mapping[str, Any]) -> bool:
    """Whether a `cfg.json` names no release of SAELens from 6 on, where it names one at all."""
    metadata = cfg.get("metadata")
    version = cfg.get("sae_lens_version") or (isinstance(metadata, dict) and metadata.get("sae_lens_version"))
    major = str(version).split(".")[0]
    return not major.isdigit() or int(major) < 6


def renewed(cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An old `cfg.json` as the new layout has it, with the old defaults. Raises `UserError` for an activation function
    that the new layout has no architecture for.
    """
    found = {RENAMED.get(key, key): value for key, value in cfg.items()}
    function, settings = found.get("activation_fn") or "relu", found.get("activation_fn_kwargs")
    if function not in ("relu", "topk"):
        raise UserError(f"{where}: activation_fn: {function}: not understood; these are: relu, topk")
    found.setdefault("architecture", "standard")
    if function == "topk":
        found |= {"architecture": "topk", **(settings if isinstance(settings, dict) else {})}
    scaled = found.get("normalize_activations") or "none"
    found["normalize_activations"] = "expected_average_only_in" if scaled is True else scaled
    heads = "hook_z" in str(found.get("hook_name"))
    found.setdefault("reshape_activations", "hook_z" if heads else "none")
    return {**found, "metadata": {key: found[key] for key in ABOUT if found.get(key) is not None}}


def take_factor(tensors: dict[str, Tensor], cfg: Mapping[str, Any], where: str) -> Tensor | None:
    """Take `scaling_factor` out of old weights, `(F,)`: finetuning made what each latent writes larger or smaller.

    Raises `UserError` where `cfg` says that there was no finetuning and the factor is not 1.
    """
    factor_F = tensors.pop("scaling_factor", None)
    if factor_F is None or bool((factor_F == 1).all()):
        return None
    if not cfg.get("finetuning_scaling_factor") or factor_F.shape != (cfg["d_sae"],):
        raise UserError(f"{where}: scaling_factor: not 1 for each latent, nor what finetuning_scaling_factor leaves")
    return factor_F.float()
