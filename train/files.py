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
from train.sparsity.batchtopk import BatchTopK
from train.sparsity.gated import Gated
from train.sparsity.jumprelu import JumpReLU

_METHODS = {
    "standard": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "gated": "gated",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
"""SAELens's architectures -> our sparsities. A trained BatchTopK is a JumpReLU with one threshold."""


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
    sparsity = dictionary.sparsity
    if isinstance(sparsity, JumpReLU | BatchTopK):
        tensors["threshold"] = sparsity.threshold.expand(dictionary.latents)
    if isinstance(sparsity, Gated):
        tensors |= {"b_gate": tensors.pop("b_enc"), "r_mag": sparsity.r_mag, "b_mag": sparsity.b_mag}
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, folder / "sae_weights.safetensors")
    cfg: dict[str, Any] = {
        "architecture": _architecture(dictionary),
        "d_in": dictionary.W_enc.shape[1],
        "d_sae": dictionary.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centered,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **sparsity.saved(),
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
    if cfg["architecture"] not in _METHODS:
        raise UserError(
            f"dictionary {folder}: architecture {cfg['architecture']!r} is not understood; "
            f"these are: {', '.join(_METHODS)}"
        )
    # l0 is a target of training; only TopK needs it afterwards.
    sparsity = make_sparsity(_METHODS[cfg["architecture"]], cfg.get("k", 1), cfg["d_sae"])
    dictionary = Dictionary(
        cfg["d_in"], cfg.get("d_out", cfg["d_in"]), sparsity, cfg["apply_b_dec_to_input"], "W_skip" in tensors
    )
    state = {name: tensors[name] for name in ("W_dec", "b_dec", "W_skip") if name in tensors}
    state |= {"W_enc": tensors["W_enc"].T, "b_enc": tensors["b_gate" if "b_gate" in tensors else "b_enc"]}
    if isinstance(sparsity, JumpReLU):
        state |= {"sparsity.log_threshold_F": tensors["threshold"].log(), "sparsity.bandwidth": sparsity.bandwidth}
    if isinstance(sparsity, Gated):
        state |= {f"sparsity.{name}": tensors[name] for name in ("r_mag", "b_mag")}
    dictionary.load_state_dict(state)
    return dictionary.eval(), cfg


def _architecture(dictionary: Dictionary) -> str:
    """SAELens's name; it has transcoders for ReLU and JumpReLU only, others keep the name of their σ."""
    name = dictionary.sparsity.architecture
    if dictionary.centered:
        return name
    relu = "transcoder" if dictionary.W_skip is None else "skip_transcoder"
    return {"standard": relu, "jumprelu": "jumprelu_transcoder"}.get(name, name)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "accelerate", "zarr", "safetensors")}
