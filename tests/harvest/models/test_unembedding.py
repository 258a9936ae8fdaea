"""The final norm and the output embedding, against each model's own weights and its own logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.config import ModelSpec
from harvest.models.load import import_transformers
from harvest.models.unembedding import NoLens, Unembedding, read_unembedding
from tests.tiny import tiny_clip, tiny_gpt2, tiny_llama

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIZES |= {"intermediate_size": 48, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def with_noise(directory: Path) -> Any:
    """The model in `directory`, on whose weights noise was put: a new norm's weights are all the same."""
    model = import_transformers().AutoModelForCausalLM.from_pretrained(directory)
    random = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=random)
    model.save_pretrained(directory)
    return model


def made(directory: Path, kind: str, **config: Any) -> Any:
    transformers = import_transformers()
    made_from = getattr(transformers, f"{kind}Config")(**SIZES, **config)
    getattr(transformers, f"{kind}ForCausalLM")(made_from).save_pretrained(directory)
    return with_noise(directory)


def read(directory: Path, site: str, **spec: Any) -> Unembedding:
    return read_unembedding(ModelSpec.model_validate({"id": str(directory), "dtype": "float32", **spec}), site, "cpu")


def logits(unembedding: Unembedding, x_ND: torch.Tensor) -> torch.Tensor:
    return unembedding.fold(x_ND) @ unembedding.weight_VD.T


def test_a_layer_norm_centres_and_an_rms_norm_does_not(tmp_path: Path) -> None:
    gpt2 = with_noise(tiny_gpt2(tmp_path / "gpt2", n_embd=33, n_head=3))
    llama = with_noise(tiny_llama(tmp_path / "llama"))
    x_ND = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    found = logits(read(tmp_path / "gpt2", "layers.1.resid_post"), x_ND)
    by_hand = ((x_ND - x_ND.mean(1, keepdim=True)) * gpt2.transformer.ln_f.weight) @ gpt2.transformer.wte.weight.T
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)
    found = logits(read(tmp_path / "llama", "layers.3.mlp_out"), x_ND[:, :24])
    by_hand = (x_ND[:, :24] * llama.model.norm.weight) @ llama.lm_head.weight.T
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)


def test_a_gain_that_is_counted_from_one_and_outputs_that_are_normed_before_they_are_added(tmp_path: Path) -> None:
    model = made(tmp_path, "Gemma2")
    found = read(tmp_path, "layers.1.resid_pre")
    assert found.gain_D is not None
    torch.testing.assert_close(found.gain_D, 1 + model.model.norm.weight.detach(), rtol=1e-4, atol=1e-4)
    for site in ("layers.1.mlp_out", "layers.0.attn_out"):
        with pytest.raises(NoLens, match=f"{site} is not added to the residual stream as it is"):
            read(tmp_path, site)


def test_an_output_that_is_scaled_before_it_is_added(tmp_path: Path) -> None:
    made(tmp_path, "Granite", residual_multiplier=0.4)
    assert read(tmp_path, "layers.1.mlp_out").gain_D is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_stream_folded_is_the_models_own_output(tmp_path: Path, dtype: str) -> None:
    """Up to the length and the bias, of which directions know nothing."""
    model = with_noise(tiny_llama(tmp_path))
    output = model(torch.arange(9)[None], output_hidden_states=True)
    x_TD = []
    model.model.norm.register_forward_pre_hook(lambda _, args: x_TD.append(args[0][0]))
    model(torch.arange(9)[None])
    found = logits(read(tmp_path, "layers.2.attn_out", dtype=dtype), x_TD[0]) / x_TD[0].square().mean(1, True).sqrt()
    torch.testing.assert_close(found, output.logits[0], rtol=0.05, atol=1e-3 if dtype == "float32" else 0.1)
    final = read(tmp_path, "final")
    torch.testing.assert_close(logits(final, output.hidden_states[-1][0]), output.logits[0])


def test_transformer_lens_names(tmp_path: Path) -> None:
    with_noise(tiny_gpt2(tmp_path))
    ours = read(tmp_path, "layers.1.mlp_out")
    theirs = read(tmp_path, "blocks.1.hook_mlp_out", backend="transformer_lens")
    assert ours.gain_D is not None
    assert theirs.gain_D is not None
    assert torch.equal(ours.gain_D, theirs.gain_D)


def test_what_has_no_lens(tmp_path: Path) -> None:
    transformers = import_transformers()
    tiny_gpt2(tmp_path / "gpt2")
    for site in ("layers.1.mlp_in", "layers.1.mlp:out", "pooled", "blocks.1.attn.hook_z"):
        with pytest.raises(NoLens, match=f"{site} is no place where the residual stream is written"):
            read(tmp_path / "gpt2", site)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 30}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=50)).save_pretrained(tmp_path / "bert")
    with pytest.raises(NoLens, match="bert has no output embedding: it is a BertModel"):
        read(tmp_path / "bert", "layers.1.resid_post")
    tiny_clip(tmp_path / "clip")
    with pytest.raises(NoLens, match="clip has no output embedding: it is a CLIPModel"):
        read(tmp_path / "clip", "layers.1.resid_post")
    decoder = transformers.BertLMHeadModel(transformers.BertConfig(**sizes, vocab_size=50, is_decoder=True))
    decoder.save_pretrained(tmp_path / "decoder")
    with pytest.raises(NoLens, match="there is more than a norm"):
        read(tmp_path / "decoder", "layers.1.resid_post")
