"""Run by SAELens's own interpreter: `saelens_peer.py answer FOLDER...`, `make FOLDER` or `make-old FOLDER`."""

import json
import pathlib
import sys

import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

MADE = {
    "topk_in_decoder_norms": {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True},
    "standard_input_as_it_is": {"architecture": "standard", "apply_b_dec_to_input": False},
    "gated_input_as_it_is": {"architecture": "gated", "apply_b_dec_to_input": False},
    "standard_normalized_in_training": {
        "architecture": "standard",
        "normalize_activations": "expected_average_only_in",
    },
    "jumprelu_skip_transcoder": {
        "architecture": "jumprelu_skip_transcoder",
        "apply_b_dec_to_input": False,
        "d_out": 10,
    },
}


HOOK = {"model_name": "tiny", "hook_name": "blocks.3.hook_resid_pre", "prepend_bos": True, "context_size": 128}
OLD = {
    # Such as they are on the Hub: what was saved with the versions 1 to 5.
    "standard": {"hook_point": "blocks.3.hook_resid_pre", "dtype": "torch.float32", "l1_coefficient": 8e-5},
    "standard_normalized": {**HOOK, "architecture": "standard", "normalize_activations": "expected_average_only_in"},
    "topk": {**HOOK, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": "none"},
    "jumprelu": {**HOOK, "architecture": "jumprelu", "activation_fn": "relu", "apply_b_dec_to_input": False},
    "gated": {**HOOK, "architecture": "gated", "activation_fn_str": "relu", "activation_fn_kwargs": {}},
    "topk_layer_norm": {
        **{"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": "layer_norm"},
        **HOOK,
    },
    "standard_constant_norm": {**HOOK, "normalize_activations": "constant_norm_rescale"},
}


@torch.no_grad()
def answer(folder: pathlib.Path) -> None:
    """What SAELens computes for the inputs `x.safetensors` of a dictionary that lies beside them."""
    sae = SAE.load_from_disk(folder)
    x = load_file(folder / "x.safetensors")["x"]
    save_file({"x": x, "latents": sae.encode(x), "output": sae(x)}, folder / "expected.safetensors")


@torch.no_grad()
def make(folder: pathlib.Path) -> None:
    """Dictionaries with random weights, saved by SAELens, and what it computes for random inputs."""
    torch.manual_seed(0)
    for name, settings in MADE.items():
        sae = SAE.from_dict({"d_in": 12, "d_sae": 40, "metadata": {}, **settings})
        for parameter in sae.parameters():
            parameter.normal_(0, 0.5)
        sae.save_model(folder / name)
        save_file({"x": torch.randn(16, 12) * 2 + 0.5}, folder / name / "x.safetensors")
        answer(folder / name)
        (folder / name / "x.safetensors").unlink()
        print(name, json.loads((folder / name / "cfg.json").read_text()))


@torch.no_grad()
def make_old(folder: pathlib.Path) -> None:
    """Dictionaries in the layout from before version 6: a flat `cfg.json`, the weights with what finetuning left."""
    torch.manual_seed(0)
    for name, cfg in OLD.items():
        k = {"k": 5} if "topk" in name else {}
        sae = SAE.from_dict({"d_in": 12, "d_sae": 40, "metadata": {}, "architecture": name.split("_")[0], **k})
        for parameter in sae.parameters():
            parameter.normal_(0, 0.5)
        sae.save_model(folder / name)
        weights = load_file(folder / name / "sae_weights.safetensors")
        if name == "standard":
            weights["scaling_factor"] = torch.ones(40)
        save_file(weights, folder / name / "sae_weights.safetensors")
        old = {"d_in": 12, "d_sae": 40, "dtype": "float32", "device": "cpu", "finetuning_scaling_factor": False, **cfg}
        (folder / name / "cfg.json").write_text(json.dumps(old))
        save_file({"x": torch.randn(16, 12) * 2 + 0.5}, folder / name / "x.safetensors")
        answer(folder / name)
        (folder / name / "x.safetensors").unlink()


if __name__ == "__main__":
    task, *folders = sys.argv[1:]
    for given in folders:
        {"answer": answer, "make": make, "make-old": make_old}[task](pathlib.Path(given))
