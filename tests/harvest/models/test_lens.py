"""The TransformerLens backend against TransformerLens itself, and against the transformers backend."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import capture
from harvest.models.load import context_limit, load_model, model_facts
from harvest.models.sites import list_sites, named_sites, resolve_sites
from tests.tiny import tiny_gpt2, tiny_llama

MAKERS = {"gpt2": tiny_gpt2, "llama": tiny_llama}


@pytest.fixture(scope="module", params=MAKERS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    directory = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return ModelSpec(id=str(directory), backend="transformer_lens", dtype="float32")


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> Any:
    return load_model(spec, "cpu")


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of 13 and 8 tokens: lengths that nothing in the models has."""
    ids_BT = torch.arange(2, 28).view(2, 13)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 8:] = 0
    return ids_BT, mask_BT


def test_every_site_equals_its_own_cache(model: Any) -> None:
    ids_BT, mask_BT = tokens()
    widths = list_sites(model)
    sites = [site for site in named_sites(model) if widths[site.name]]
    values = capture(model, sites, ids_BT, mask_BT)
    with torch.inference_mode():
        _, cache = model.bridge.run_with_cache(ids_BT, attention_mask=mask_BT, return_cache_object=False)
    of_tokens = {name: value for name, value in cache.items() if value.ndim > 2 and value.shape[:2] == ids_BT.shape}
    assert set(values) == set(of_tokens)
    assert {"hook_embed", "blocks.1.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"} <= set(values)
    for name, value in of_tokens.items():
        assert torch.equal(values[name], value.flatten(2)), name
    assert widths["blocks.1.attn.hook_z"] == model.config.hidden_size


def test_names_that_mean_the_same_place_agree_with_transformers(spec: ModelSpec, model: Any) -> None:
    plain: Any = load_model(spec.model_copy(update={"backend": "transformers"}), "cpu")
    parts = {"resid_pre": "hook_resid_pre", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out"}
    parts["resid_post"] = "hook_resid_post"
    depth = plain.config.num_hidden_layers
    same = {f"layers.{i}.{ours}": f"blocks.{i}.{theirs}" for i in range(depth) for ours, theirs in parts.items()}
    same |= {"embed": "hook_embed", "final": "ln_final.hook_out"}
    ids_BT, mask_BT = tokens()
    ours = capture(plain, [site for (site,) in resolve_sites(plain, same).values()], ids_BT, mask_BT)
    theirs = capture(model, [site for (site,) in resolve_sites(model, same.values()).values()], ids_BT, mask_BT)
    for name, other in same.items():
        kept = mask_BT.bool()
        torch.testing.assert_close(ours[name][kept], theirs[other][kept], rtol=1e-4, atol=1e-5, msg=name)


def test_a_sweep_goes_by_layer_and_depth_may_be_relative(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path, num_hidden_layers=12)
    model = load_model(ModelSpec(id=str(directory), backend="transformer_lens", dtype="float32"), "cpu")
    written = resolve_sites(model, ["blocks.*.hook_resid_post", "blocks.50%.attn.hook_z"])
    names = {name: [site.name for site in sites] for name, sites in written.items()}
    assert names["blocks.*.hook_resid_post"] == [f"blocks.{index}.hook_resid_post" for index in range(12)]
    assert names["blocks.50%.attn.hook_z"] == ["blocks.6.attn.hook_z"]


def test_the_pass_stops_after_the_last_site(model: Any) -> None:
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, path=path: ran.append(path))
        for path, module in model.named_modules()
    ]
    (site,) = resolve_sites(model, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]
    alone = capture(model, [site], *tokens())[site.name]
    for handle in handles:
        handle.remove()
    assert {path.split(".")[2] for path in ran if path.startswith("bridge.blocks.")} == {"0", "1"}
    assert not [path for path in ran if path.startswith(("bridge.blocks.1._original_component.mlp.", "bridge.unembed"))]
    again = capture(model, [*resolve_sites(model, ["hook_unembed"])["hook_unembed"], site], *tokens())
    assert torch.equal(alone, again[site.name])


def test_left_padding_changes_nothing_at_tokens(model: Any) -> None:
    ids_BT, mask_BT = tokens()
    (site,) = resolve_sites(model, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"]
    right = capture(model, [site], ids_BT, mask_BT)[site.name][1, :8]
    shifted = capture(model, [site], ids_BT[1:].roll(5, 1), mask_BT[1:].roll(5, 1))[site.name][0, 5:]
    torch.testing.assert_close(right, shifted)


def test_what_is_not_one_vector_per_token_is_refused(model: Any) -> None:
    (pattern,) = resolve_sites(model, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"]
    with pytest.raises(UserError, match=r"hook_pattern: its shape \(2, 4, 13, 13\) is not one vector per token"):
        capture(model, [pattern], *tokens())
    with pytest.raises(UserError, match=r"blocks.9.hook_resid_post: this model has layers 0 to [23]$"):
        resolve_sites(model, ["blocks.9.hook_resid_post"])
    with pytest.raises(UserError, match=r"no such site; this model has blocks.0 to blocks.[23], each with .*hook_z"):
        resolve_sites(model, ["layers.1.resid_post"])


def test_facts_dtype_and_limits(spec: ModelSpec, model: Any) -> None:
    plain = spec.model_copy(update={"backend": "transformers"})
    assert model_facts(spec) == model_facts(plain) | {"backend": "transformer_lens"}
    assert context_limit(model) == 64
    half = load_model(spec.model_copy(update={"dtype": "bfloat16"}), "cpu")
    sites = resolve_sites(half, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"]
    assert capture(half, sites, *tokens())["blocks.1.hook_resid_post"].dtype == torch.bfloat16


def test_a_release_that_is_missing_or_too_old(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.model_bridge", None)
    with pytest.raises(UserError, match=r"backend: transformer_lens cannot be imported .*pip install"):
        load_model(spec, "cpu")
