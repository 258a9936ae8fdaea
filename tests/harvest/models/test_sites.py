"""Site names: what they resolve to, and what is said when they do not."""

from pathlib import Path
from typing import Any

import pytest

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import Site
from harvest.models.load import import_transformers, load_model
from harvest.models.sites import list_sites, resolve_sites
from tests.tiny import tiny_llama

HAS = (
    "this model has layers.0 to layers.9, each with resid_pre, attn_out, mlp_in, mlp_out, resid_post; embed; final; "
    "or a module path with :in or :out"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tiny_llama(tmp_path_factory.mktemp("llama"), num_hidden_layers=10)
    return load_model(ModelSpec(id=str(directory), dtype="float32"), "cpu")


@pytest.mark.parametrize(
    ("written", "site"),
    [
        ("layers.9.resid_pre", Site("layers.9.resid_pre", "layers.9", "in")),
        ("layers.0.mlp_in", Site("layers.0.mlp_in", "layers.0.mlp", "in")),
        ("layers.3.attn_out", Site("layers.3.attn_out", "layers.3.self_attn", "out")),
        ("layers.40%.resid_post", Site("layers.4.resid_post", "layers.4", "out")),
        ("layers.0%.mlp_out", Site("layers.0.mlp_out", "layers.0.mlp", "out")),
        ("layers.37.5%.resid_post", Site("layers.4.resid_post", "layers.4", "out")),
        ("layers.100%.resid_post", Site("layers.9.resid_post", "layers.9", "out")),
        ("embed", Site("embed", "embed_tokens", "out")),
        ("final", Site("final", "", "out")),
        ("layers.2.self_attn.q_proj:out", Site("layers.2.self_attn.q_proj:out", "layers.2.self_attn.q_proj", "out")),
    ],
)
def test_names_resolve(model: Any, written: str, site: Site) -> None:
    assert resolve_sites(model, [written]) == {written: [site]}


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("layers.*.resid_post", [f"layers.{index}.resid_post" for index in range(10)]),
        ("layers.3.*_out", ["layers.3.attn_out", "layers.3.mlp_out"]),
        ("layers.*.mlp.up_proj:in", [f"layers.{index}.mlp.up_proj:in" for index in range(10)]),
        ("e*", ["embed"]),
    ],
)
def test_a_star_stands_for_every_site_that_matches_in_order(model: Any, written: str, names: list[str]) -> None:
    assert [site.name for site in resolve_sites(model, [written])[written]] == names


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("layers.40.resid_post", "layers.40.resid_post: this model has layers 0 to 9"),
        ("layers.3.residual", f"layers.3.residual: no such site; {HAS}"),
        ("layers.50%.residual", f"layers.50%.residual: no such site; {HAS}"),
        ("layers.101%.resid_pre", "layers.101%.resid_pre: a relative depth is between 0% and 100%"),
        ("blocks.3:out", f"blocks.3:out: this model has no module 'blocks.3'; {HAS.replace('this model', 'it')}"),
        ("layers.3:inside", f"layers.3:inside: no such site; {HAS}"),
        ("layers.*", f"layers.*: no site matches (* stands for anything between two dots); {HAS}"),
        ("", f": no such site; {HAS}"),
    ],
)
def test_mistakes_are_one_line_that_says_what_there_is(model: Any, written: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve_sites(model, ["layers.0.resid_pre", written])
    assert str(raised.value) == message


def config_of(kind: str, **more: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    return getattr(import_transformers(), kind)(vocab_size=64, **sizes, **more)


@pytest.mark.parametrize(
    ("kind", "more", "parts"),
    [
        # These add the residual inside their attention and MLP, whose outputs are therefore no parts of a sum.
        ("BertConfig", {}, {"resid_pre", "resid_post"}),
        ("BloomConfig", {}, {"resid_pre", "resid_post"}),
        ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}, {"resid_pre", "attn_out", "resid_post"}),
        ("GPTNeoXConfig", {}, {"resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post"}),
        ("MixtralConfig", {"num_key_value_heads": 2}, {"resid_pre", "attn_out", "mlp_in", "mlp_out", "resid_post"}),
    ],
)
def test_other_architectures(kind: str, more: dict[str, Any], parts: set[str]) -> None:
    model = import_transformers().AutoModel.from_config(config_of(kind, **more)).eval()
    widths = list_sites(model)
    assert {name.split(".")[2] for name in widths if name.startswith("layers.3.")} == parts
    assert len(widths) == 4 * len(parts) + 2
    assert set(widths.values()) == {32}


def test_a_hybrid_says_that_only_some_layers_have_attention() -> None:
    kinds = ["linear_attention", "full_attention"] * 2
    config = config_of("Qwen3NextConfig", layer_types=kinds, num_experts=4, moe_intermediate_size=16, head_dim=8)
    model = import_transformers().AutoModel.from_config(config).eval()
    with pytest.raises(UserError, match="each with resid_pre, mlp_in, mlp_out, resid_post; some of them with attn_out"):
        resolve_sites(model, ["layers.0.attn_out"])
    assert resolve_sites(model, ["layers.1.attn_out"])["layers.1.attn_out"][0].path == "layers.1.self_attn"


def test_the_layers_are_found_in_a_whole_language_model(tmp_path: Path) -> None:
    model = import_transformers().AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path)).eval()
    sites = resolve_sites(model, ["layers.1.mlp_in", "final"])
    assert [site.path for (site,) in sites.values()] == ["model.layers.1.mlp", "model"]
