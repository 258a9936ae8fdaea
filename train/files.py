"""The dictionary directory, as SAELens lays it out: `cfg.json` and `sae_weights.safetensors`."""

import pathlib
from importlib.metadata import version
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from harvest.errors import UserError
from harvest.files import read_json, write_json
from train.dictionary import Dictionary
from train.sparsity import make_sparsity


def save(dictionary: Dictionary, folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Write a dictionary of the model's own units. `metadata`: our own facts, under that key of `cfg.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": dictionary.W_enc.T,
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    if dictionary.W_skip is not None:
        tensors["W_skip"] = dictionary.W_skip
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / "sae_weights.safetensors")
    cfg: dict[str, Any] = {
        "architecture": dictionary.sparsity.architecture,
        "d_in": dictionary.W_enc.shape[1],
        "d_sae": dictionary.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centered,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **dictionary.sparsity.saved(),
        "metadata": metadata,
    }
    if not dictionary.centered:
        cfg["d_out"] = dictionary.W_dec.shape[1]
    write_json(folder / "cfg.json", cfg)


def load(folder: pathlib.Path) -> tuple[Dictionary, dict[str, Any]]:
    """A saved dictionary and its `cfg.json`."""
    cfg = read_json(folder / "cfg.json", "dictionary")
    try:
        tensors = load_file(folder / "sae_weights.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"dictionary {folder}: has no readable sae_weights.safetensors ({error})") from None
    sparsity = make_sparsity(cfg["architecture"], cfg["k"], cfg["d_sae"])
    dictionary = Dictionary(
        cfg["d_in"], cfg.get("d_out", cfg["d_in"]), sparsity, cfg["apply_b_dec_to_input"], "W_skip" in tensors
    )
    tensors["W_enc"] = tensors["W_enc"].T
    dictionary.load_state_dict(tensors)
    return dictionary.eval(), cfg


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "accelerate", "zarr", "safetensors")}
