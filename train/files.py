"""The dictionary directory, as SAELens lays it out: `cfg.json` and `sae_weights.safetensors`."""

import math
import pathlib
from importlib.metadata import version
from typing import Any, Literal

import pydantic
import torch
from pydantic import ConfigDict, Field, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harvest.config import Spec, check_spec
from harvest.errors import UserError
from harvest.files import read_json, write_json
from train import old_layout
from train.dictionary import Dictionary
from train.equivalents import count_in_decoder_norms, uncentered, ungated
from train.row_norms import ROW_NORMS
from train.shards import save_shards
from train.sparsity import SPARSITIES, Sparsity
from train.sparsity.gated import Gated

LAYOUT = "6.54.12"
"""The release of SAELens whose layout this is. SAELens takes a `cfg.json` that names none for one of the old layout."""
SAELENS_TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
"""SAELens's architectures that read one site and write another, or have a skip connection."""
FORMS = ((False, False), (True, False), (True, True))
"""(transcoder, skip): what there is of each σ. A skip connection is for transcoders."""


def save(dictionary: Dictionary, folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Write a dictionary of the model's own units, so that SAELens's `SAE.load_from_disk` opens it as the same
    function.

    `metadata`: our own facts, under that key of `cfg.json`; there `save` adds the layout's version and `sparsity`: the
    σ's `method`, its target `l0` and its scalars.

    Sites lie side by side, in the order read or written. A crosscoder is therefore an SAE of its sites' concatenation,
    exact for sites of any widths; who wants them apart needs the widths, so give them in `metadata`.

    A form that SAELens does not have is written as one that it has and that is the same function: BatchTopK as a
    JumpReLU with one threshold, a Gated transcoder as a JumpReLU one, an SAE with a skip connection as a skip
    transcoder, a TopK transcoder that writes as many numbers as it reads as a TopK that leaves its input uncentred.
    SAELens has nothing that equals a TopK with a skip connection, or one of other widths: these are named
    `topk_skip_transcoder` and `topk_transcoder`, which only `load` reads, and `cfg.json` says so.

    Where processes split the latents, all must call this; the first one writes the directory.
    """
    sparsity, ranks = dictionary.sparsity, dictionary.ranks
    method = next(name for name, kind in SPARSITIES.items() if type(sparsity) is kind)
    scalars = {name: float(value) for name, value in sparsity.named_buffers() if value.ndim == 0}
    dictionary, architecture = _in_form(dictionary)
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": dictionary.W_enc.shape[1],
        "d_sae": dictionary.latents * ranks.latent_shares,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centered,
        "normalize_activations": dictionary.row_norm or "none",
        "reshape_activations": "none",
        **dictionary.sparsity.saved_keys(),
        "metadata": {
            **metadata,
            "sae_lens_version": LAYOUT,
            "sparsity": {"method": method, "l0": None if math.isnan(sparsity.l0) else sparsity.l0, **scalars},
        },
    }
    if architecture.endswith("transcoder"):
        cfg["d_out"] = dictionary.W_dec.shape[1]
        if architecture not in SAELENS_TRANSCODERS:
            cfg["metadata"]["limitation"] = f"SAELens has no {architecture}; load this with train.files.load"
    tensors = {name: tensor.detach() for name, tensor in _tensors(dictionary).items()}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if ranks.latent_shares > 1:
            split = {"W_enc": 1, "b_dec": None, "W_skip": None}
            save_shards(
                {name: (part, split.get(name, 0)) for name, part in tensors.items()},
                folder / "sae_weights.safetensors",
                ranks,
            )
        else:
            whole = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, folder / "sae_weights.safetensors")
        if ranks.latent_share == 0:
            write_json(folder / "cfg.json", cfg)
    except (OSError, SafetensorError) as error:
        raise UserError(f"dictionary {folder}: cannot be written ({error})") from None


def load(folder: pathlib.Path) -> tuple[Dictionary, dict[str, Any]]:
    """A dictionary that `save` or SAELens wrote, for use rather than training, and its `cfg.json` in the layout of now.

    Latents and output are those that SAELens computes. What was trained as a BatchTopK, or as a Gated transcoder, is
    the JumpReLU that it equals; where nothing says which l0 a σ was trained for, its `l0` is NaN. Raises `UserError`
    for what this can't read: missing or unexpected keys or tensors, architectures that are not here.
    """
    cfg = read_json(folder / "cfg.json", "dictionary")
    if old := isinstance(cfg, dict) and old_layout.is_old(cfg):
        cfg = old_layout.renewed(cfg, f"dictionary {folder}: cfg.json")
    layout = check_spec(cfg, _Layout, f"dictionary {folder}: cfg.json: ")
    dictionary = layout.empty_dictionary()
    try:
        tensors = load_file(folder / "sae_weights.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"dictionary {folder}: has no readable sae_weights.safetensors ({error})") from None
    where = f"dictionary {folder}: sae_weights.safetensors"
    factor_F = old_layout.take_factor(tensors, cfg, where) if old else None
    expected = {name: tuple(tensor.shape) for name, tensor in _tensors(dictionary).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            wanted, has = (shapes.get(name, "none") for shapes in (expected, found))
            raise UserError(f"{where}: {name}: {has}; a {layout.architecture} has {wanted}")
    if factor_F is not None:
        tensors["W_dec"] = tensors["W_dec"] * factor_F[:, None]
    _fill(dictionary, tensors)
    for name, buffer in dictionary.sparsity.named_buffers():
        if buffer.ndim == 0:
            buffer.fill_(layout.remembered.get(name, 0.0))
    if layout.rescale_acts_by_decoder_norm:
        count_in_decoder_norms(dictionary)
    return dictionary.eval(), cfg


class _Layout(Spec):
    """What `load` needs of a `cfg.json`, with SAELens's defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    architecture: str
    d_in: PositiveInt
    d_sae: PositiveInt
    d_out: PositiveInt | None = None
    k: PositiveInt | None = None
    rescale_acts_by_decoder_norm: bool = False
    apply_b_dec_to_input: bool = True
    # But for the row by row ones, these are about training: at inference SAELens encodes activations as they are.
    normalize_activations: Literal[
        "none", "expected_average_only_in", "covariance_whitening", "layer_norm", "constant_norm_rescale"
    ] = "none"
    # Heads side by side, which is how a store has them.
    reshape_activations: Literal["none", "hook_z"] = "none"
    metadata: dict[str, Any] = Field(default_factory=dict)

    @pydantic.model_validator(mode="after")
    def _readable(self) -> "_Layout":
        names = _architectures()
        if self.architecture not in names:
            raise ValueError(f"architecture {self.architecture!r} is not understood; these are: {', '.join(names)}")
        sigma, transcoder, _ = names[self.architecture]
        if transcoder and self.d_out is None:
            raise ValueError(f"d_out is missing; a {self.architecture} needs it")
        if sigma.architecture == "topk" and not 0 < (self.k or 0) <= self.d_sae:
            raise ValueError(f"k is {self.k}; it must be between 1 and d_sae, {self.d_sae}")
        if transcoder and self.normalize_activations in ROW_NORMS:
            raise ValueError(f"normalize_activations {self.normalize_activations} is understood of SAEs alone")
        return self

    @property
    def remembered(self) -> dict[str, Any]:
        """What `save` said of the σ; empty if SAELens wrote the directory."""
        found = self.metadata.get("sparsity")
        return found if isinstance(found, dict) else {}

    def empty_dictionary(self) -> Dictionary:
        sigma, transcoder, skip = _architectures()[self.architecture]
        sparsity = sigma(self.k or self.remembered.get("l0") or math.nan, self.d_sae)
        written = self.d_out if transcoder else None
        centered = self.apply_b_dec_to_input and not transcoder
        dictionary = Dictionary(self.d_in, written or self.d_in, sparsity, centered, skip)
        if self.normalize_activations in ROW_NORMS:
            dictionary.row_norm = self.normalize_activations
        return dictionary


def _in_form(dictionary: Dictionary) -> tuple[Dictionary, str]:
    """A dictionary's function as its file will hold it, and the architecture's name."""
    skip = dictionary.W_skip is not None
    transcoder = skip or not dictionary.centered
    written, read = dictionary.W_dec.shape[1], dictionary.W_enc.shape[1]
    if transcoder and isinstance(dictionary.sparsity, Gated):
        dictionary = ungated(dictionary)
    if transcoder and dictionary.centered:
        dictionary = uncentered(dictionary)
    if dictionary.sparsity.architecture == "topk" and not skip and written == read:
        transcoder = False
    return dictionary, _architecture(dictionary.sparsity.architecture, transcoder, skip)


def _architecture(sigma: str, transcoder: bool, skip: bool) -> str:
    """SAELens's name, or one that is formed as its are."""
    name = sigma + "_skip" * skip + "_transcoder" * transcoder
    return name.removeprefix("standard_")


def _architectures() -> dict[str, tuple[type[Sparsity], bool, bool]]:
    """Every name that `load` understands: its σ, whether it is a transcoder, whether it has a skip connection."""
    names: dict[str, tuple[type[Sparsity], bool, bool]] = {}
    for transcoder, skip in FORMS:
        for sigma in SPARSITIES.values():
            names.setdefault(_architecture(sigma.architecture, transcoder, skip), (sigma, transcoder, skip))
    return names


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    """The weights by SAELens's names, in its shapes."""
    tensors = {
        "W_enc": dictionary.W_enc.T,
        dictionary.sparsity.bias_name: dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
        **dictionary.sparsity.saved_tensors(),
    }
    return tensors if dictionary.W_skip is None else {**tensors, "W_skip": dictionary.W_skip}


@torch.no_grad()
def _fill(dictionary: Dictionary, tensors: dict[str, Tensor]) -> None:
    """The reverse of `_tensors`."""
    dictionary.W_enc.copy_(tensors["W_enc"].T)
    dictionary.b_enc.copy_(tensors[dictionary.sparsity.bias_name])
    dictionary.W_dec.copy_(tensors["W_dec"])
    dictionary.b_dec.copy_(tensors["b_dec"])
    if dictionary.W_skip is not None:
        dictionary.W_skip.copy_(tensors["W_skip"])
    dictionary.sparsity.restore(tensors)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "accelerate", "zarr", "safetensors")}
