"""The sites of every causal language model that transformers knows, and of some encoders, as tiny random models."""

import functools
from typing import Any

import pytest
import torch

from harvest.errors import UserError
from harvest.models.capture import Site, capture, text_inputs
from harvest.models.load import import_transformers
from harvest.models.sites import named_sites, resolve_sites

ENCODERS = ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert", "xlm-roberta", "mpnet"]

UNSUPPORTED = {
    "albert": "one layer, run once for each of its depth",
    "cpmant": "its layers see a prompt before the text",
    "hrm_text": "two stacks, each run many times",
    "longcat_flash": "its config counts a layer as two",
    "mllama": "some of its layers read images, and are left out where there are none",
    "xlnet": "its layers see `(T, B, width)`",
    "xlm": "its attentions and its MLPs are two lists: no module is a layer",
}
"""These have no sites for their layers, or not all can be captured."""

SIZES: dict[str, Any] = {
    # Widths
    **{"hidden_size": 32, "d_model": 32, "embedding_size": 32, "word_embed_proj_dim": 32, "lru_width": 32},
    **{"intermediate_size": 48, "d_ff": 48, "ffn_dim": 48, "head_dim": 8, "d_kv": 8, "state_size": 4, "expand": 2},
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "q_lora_rank": 8, "kv_lora_rank": 8},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"mamba_d_state": 4, "mamba_d_head": 8, "time_step_rank": 4, "rotary_dim": 4},
    # Depths and heads
    **{"num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "decoder_layers": 4, "first_k_dense_replace": 1},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "n_head": 4, "n_heads": 4, "num_heads": 8},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "mamba_n_heads": 8, "decoder_attention_heads": 4},
    # Everything else
    **{"vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 64, "n_positions": 64},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"n_group": 1, "topk_group": 1, "n_groups": 1, "mamba_n_groups": 1},
    **{"sliding_window": 4, "attention_window_size": 4, "chunk_size": 4},
}
"""Keys of a config, each set where the type has it."""

LATENT_ATTENTION = {"num_key_value_heads": 4}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), LATENT_ATTENTION),
    **dict.fromkeys(("glm_moe_dsa", "longcat_flash", "minicpm3", "youtu", "dots1"), LATENT_ATTENTION),
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "xlnet": {"max_position_embeddings": None},
}
"""Keys that one type needs besides, or (None) does not take."""

STATES_AFTER_LAYERS = ("mamba", "mamba2", "falcon_mamba", "rwkv")
"""Their hidden states are those after each layer and the final one, where others' begin with the embeddings."""


def model_types() -> list[str]:
    import_transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *ENCODERS]))


def sizes_of(config: Any, more: dict[str, Any]) -> dict[str, Any]:
    """Small sizes for the keys that the config has, and for those of the configs inside it."""
    inside = {name: getattr(config, name) for name in type(config).sub_configs}
    small = {
        name: {**sizes_of(part, {}), "model_type": part.model_type} for name, part in inside.items() if part is not None
    }
    sizes = {**{key: value for key, value in SIZES.items() if hasattr(config, key)}, **more}
    return small | {key: value for key, value in sizes.items() if value is not None}


@functools.cache
def built(model_type: str) -> Any:
    """The base model, or why there is none."""
    transformers = import_transformers()
    try:
        kind = transformers.CONFIG_MAPPING[model_type]
        default = kind()
        if default.is_encoder_decoder:
            return "an encoder-decoder, which loading refuses"
        config = kind(**sizes_of(default, MORE.get(model_type, {})))
        config.use_cache = False
        auto = transformers.AutoModel if kind in transformers.MODEL_MAPPING else transformers.AutoModelForCausalLM
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in auto.from_config(config).parameters())
        if weights > 8_000_000:
            return f"these sizes leave it {weights:,} weights"
        torch.manual_seed(0)
        model = auto.from_config(config).base_model.eval()
        with torch.inference_mode():
            model(**text_inputs(model, *tokens()))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return model


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    ids_BT = torch.tensor([[5, 9, 2, 60, 33], [7, 7, 41, 8, 1]])
    return ids_BT, torch.ones_like(ids_BT)


def same(captured_BTD: torch.Tensor, state: torch.Tensor) -> bool:
    return torch.equal(captured_BTD, state.flatten(2))


@functools.cache
def wrong_sites(model_type: str) -> list[str]:
    """The sites of the residual stream that differ from the hidden states that the model itself returns."""
    model = built(model_type)
    sites = [site for site in named_sites(model) if site.name.endswith(("resid_pre", "resid_post")) or not site.path]
    values = capture(model, sites, *tokens())
    with torch.inference_mode():
        out = model(**text_inputs(model, *tokens()), output_hidden_states=True)
    depth = model.config.get_text_config().num_hidden_layers
    assert list(values) == [
        *(f"layers.{i}.{end}" for i in range(depth) for end in ("resid_pre", "resid_post")),
        "final",
    ]
    assert len(out.hidden_states) == depth + 1
    states = [values["layers.0.resid_pre"]] if model_type in STATES_AFTER_LAYERS else []
    states += [*out.hidden_states]
    right = {f"layers.{i}.resid_pre": states[i] for i in range(depth)}
    # The last hidden state has the final norm applied.
    right |= {f"layers.{i}.resid_post": states[i + 1] for i in range(depth - 1)}
    right |= {"final": out.last_hidden_state}
    return [name for name, state in right.items() if not same(values[name], state)]


def modules_run(model: Any, site: Site) -> tuple[torch.Tensor, list[str]]:
    """The captured values, and the modules that began to run, in order."""
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, path=path: ran.append(path))
        for path, module in model.named_modules()
    ]
    values_BTD = capture(model, [site], *tokens())[site.name]
    for handle in handles:
        handle.remove()
    return values_BTD, ran


@pytest.mark.parametrize("model_type", model_types())
def test_the_residual_stream_is_the_models_own_hidden_states(model_type: str) -> None:
    if isinstance(model := built(model_type), str):
        pytest.skip(model)
    names = {site.name: site for site in named_sites(model)}
    if model_type in UNSUPPORTED:
        with pytest.raises(UserError):
            capture(model, resolve_sites(model, [every := "layers.*.resid_post"])[every], *tokens())
        return
    assert wrong_sites(model_type) == []
    middle = names["layers.1.resid_post"]
    values_BTD, ran = modules_run(model, middle)
    assert torch.equal(values_BTD, capture(model, list(names.values()), *tokens())[middle.name])
    stack = middle.path.rpartition(".")[0]
    layers = {path.removeprefix(f"{stack}.").split(".")[0] for path in ran if path.startswith(f"{stack}.")}
    assert layers == {"0", "1"}


def test_most_types_are_built_and_hold() -> None:
    there = [kind for kind in model_types() if not isinstance(built(kind), str) and kind not in UNSUPPORTED]
    hold = [kind for kind in there if not wrong_sites(kind)]
    assert len(hold) >= 140, len(hold)
    assert {"gpt2", "llama", "mixtral", "qwen3_next", "mamba", "gemma3", "gpt_oss", *ENCODERS} - set(hold) == {"albert"}
