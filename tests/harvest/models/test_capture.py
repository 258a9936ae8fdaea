"""Captured activations against hand-written hooks and the models' own hidden states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import Site, capture, site_widths
from harvest.models.load import import_transformers, load_model, load_tokenizer
from harvest.models.sites import list_sites, named_sites, resolve_sites
from tests.tiny import TEXT, tiny_gpt2, tiny_llama

MAKERS = {"gpt2": tiny_gpt2, "llama": tiny_llama}
MLP_OF = {"gpt2": "h.{}.mlp", "llama": "layers.{}.mlp"}
ATTENTION_OF = {"gpt2": "h.{}.attn", "llama": "layers.{}.self_attn"}


@pytest.fixture(scope="module", params=MAKERS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """(family, model, tokenizer)"""
    directory = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    spec = ModelSpec(id=str(directory), dtype="float32")
    return request.param, load_model(spec, "cpu"), load_tokenizer(spec)


def batch(tokenizer: Any, lengths: list[int], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Consecutive pieces of the text with these lengths, padded with id 0."""
    ids = tokenizer(TEXT, add_special_tokens=True)["input_ids"]
    input_ids_BT = torch.zeros((len(lengths), max(lengths)), dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    start = 0
    for row, length in enumerate(lengths):
        columns = slice(max(lengths) - length, None) if left else slice(0, length)
        input_ids_BT[row, columns] = torch.tensor(ids[start : start + length])
        mask_BT[row, columns] = 1
        start += length
    return input_ids_BT, mask_BT


def by_hand(model: Any, path: str, side: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    seen = []

    def before(_module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_module: Any, _args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    module = model.get_submodule(path)
    register: dict[str, Callable[[], Any]] = {
        "in": lambda: module.register_forward_pre_hook(before, with_kwargs=True),
        "out": lambda: module.register_forward_hook(after),
    }
    handle = register[side]()
    with torch.inference_mode():
        model(**inputs)
    handle.remove()
    assert isinstance(seen[0], torch.Tensor)
    return seen[0]


def test_every_layer_equals_hidden_states(tiny: tuple[str, Any, Any]) -> None:
    _, model, tokenizer = tiny
    input_ids_BT, mask_BT = batch(tokenizer, [9, 5, 7])
    values = capture(model, named_sites(model), input_ids_BT, mask_BT)
    with torch.inference_mode():
        out = model(input_ids=input_ids_BT, attention_mask=mask_BT, output_hidden_states=True)
    depth = model.config.num_hidden_layers
    for layer in range(depth):
        assert torch.equal(values[f"layers.{layer}.resid_pre"], out.hidden_states[layer])
        if layer < depth - 1:  # the last hidden state has the final norm applied
            assert torch.equal(values[f"layers.{layer}.resid_post"], out.hidden_states[layer + 1])
    assert torch.equal(values["final"], out.last_hidden_state)
    norm = model.get_submodule("norm" if hasattr(model, "norm") else "ln_f")
    assert torch.equal(norm(values[f"layers.{depth - 1}.resid_post"]), out.last_hidden_state)


def test_every_site_equals_a_hand_written_hook(tiny: tuple[str, Any, Any]) -> None:
    family, model, tokenizer = tiny
    input_ids_BT, mask_BT = batch(tokenizer, [6, 11])
    inputs = {"input_ids": input_ids_BT, "attention_mask": mask_BT}
    values = capture(model, named_sites(model), input_ids_BT, mask_BT)
    for layer in range(model.config.num_hidden_layers):
        mlp, attention = MLP_OF[family].format(layer), ATTENTION_OF[family].format(layer)
        assert torch.equal(values[f"layers.{layer}.mlp_in"], by_hand(model, mlp, "in", inputs))
        assert torch.equal(values[f"layers.{layer}.mlp_out"], by_hand(model, mlp, "out", inputs))
        assert torch.equal(values[f"layers.{layer}.attn_out"], by_hand(model, attention, "out", inputs))
        block = [values[f"layers.{layer}.{part}"] for part in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        torch.testing.assert_close(block[0] + block[1] + block[2], block[3])
    assert torch.equal(values["embed"], model.get_input_embeddings()(input_ids_BT))


def test_attention_input_given_by_keyword(tiny: tuple[str, Any, Any]) -> None:
    family, model, tokenizer = tiny
    input_ids_BT, mask_BT = batch(tokenizer, [8])
    path = ATTENTION_OF[family].format(1)
    ((site,),) = resolve_sites(model, [f"{path}:in"]).values()
    inputs = {"input_ids": input_ids_BT, "attention_mask": mask_BT}
    assert torch.equal(capture(model, [site], input_ids_BT, mask_BT)[f"{path}:in"], by_hand(model, path, "in", inputs))


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing_at_tokens(tiny: tuple[str, Any, Any], left: bool) -> None:
    _, model, tokenizer = tiny
    lengths = [4, 13, 1, 9]
    input_ids_BT, mask_BT = batch(tokenizer, lengths, left)
    padded = capture(model, named_sites(model), input_ids_BT, mask_BT)
    for row in range(len(lengths)):
        alone_1T = input_ids_BT[row][mask_BT[row].bool()][None]
        alone = capture(model, named_sites(model), alone_1T, torch.ones_like(alone_1T))
        for name, values_BTD in padded.items():
            torch.testing.assert_close(values_BTD[row][mask_BT[row].bool()], alone[name][0], msg=f"{name} row {row}")


def test_left_padding_equals_the_model_given_positions(tiny: tuple[str, Any, Any]) -> None:
    _, model, tokenizer = tiny
    input_ids_BT, mask_BT = batch(tokenizer, [4, 9], left=True)
    positions_BT = torch.tensor([[0] * 5 + [0, 1, 2, 3], list(range(9))])
    with torch.inference_mode():
        out = model(
            input_ids=input_ids_BT, attention_mask=mask_BT, position_ids=positions_BT, output_hidden_states=True
        )
    ((site,),) = resolve_sites(model, ["layers.1.resid_post"]).values()
    assert torch.equal(capture(model, [site], input_ids_BT, mask_BT)[site.name], out.hidden_states[2])


def test_token_id_0_is_a_token_like_any_other(tiny: tuple[str, Any, Any]) -> None:
    """With the mask all ones, ids of 0 at the end and inside are run, not taken for padding."""
    _, model, tokenizer = tiny
    input_ids_BT, mask_BT = batch(tokenizer, [10, 10])
    input_ids_BT[0, 4] = input_ids_BT[:, -1] = 0
    values = capture(model, named_sites(model), input_ids_BT, mask_BT)
    with torch.inference_mode():
        out = model(input_ids=input_ids_BT, output_hidden_states=True)
    torch.testing.assert_close(values["layers.1.resid_post"], out.hidden_states[2])
    assert not torch.equal(values["layers.1.resid_post"][0, 4], values["layers.1.resid_post"][0, -1])


def test_the_pass_stops_after_the_last_site(tiny: tuple[str, Any, Any]) -> None:
    _, model, tokenizer = tiny
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _args, path=path: ran.append(path))
        for path, module in model.named_modules()
    ]
    names = ["layers.1.mlp_in", "layers.0.resid_post", "layers.1.attn_out"]
    sites = {name: site for name, (site,) in resolve_sites(model, names).items()}
    assert list(capture(model, list(sites.values()), *batch(tokenizer, [5]))) == names
    for handle in handles:
        handle.remove()
    mlp = sites["layers.1.mlp_in"].path
    assert sites["layers.1.attn_out"].path in ran
    next_layer = resolve_sites(model, ["layers.2.resid_pre"])["layers.2.resid_pre"][0].path
    assert not [path for path in ran if path.startswith((f"{mlp}.", next_layer))]


def hooks(model: Any) -> list[Any]:
    return [[*module._forward_pre_hooks, *module._forward_hooks] for module in model.modules()]


def test_hooks_are_gone_after_success_and_failure(tiny: tuple[str, Any, Any]) -> None:
    _, model, tokenizer = tiny
    sites = named_sites(model)
    before = hooks(model)  # transformers may keep some of its own
    capture(model, sites, *batch(tokenizer, [5]))
    with pytest.raises(IndexError):
        capture(model, sites, torch.full((1, 3), 10**6), torch.ones((1, 3), dtype=torch.long))
    with pytest.raises(AttributeError):
        capture(model, [*sites, Site("x", "no.such.module", "out")], *batch(tokenizer, [5]))
    assert hooks(model) == before


def test_bfloat16_and_no_cache(tmp_path: Path) -> None:
    model = load_model(ModelSpec(id=str(tiny_llama(tmp_path)), dtype="bfloat16"), "cpu")
    input_ids_BT = torch.arange(2, 12)[None]
    mask_BT = torch.ones_like(input_ids_BT)
    values = capture(model, named_sites(model), input_ids_BT, mask_BT)
    assert {value.dtype for value in values.values()} == {torch.bfloat16}
    with torch.inference_mode():
        out = model(input_ids=input_ids_BT, attention_mask=mask_BT, output_hidden_states=True)
    assert torch.equal(values["layers.2.resid_post"], out.hidden_states[3])
    assert out.past_key_values is None


def falcon() -> Any:
    transformers = import_transformers()
    torch.manual_seed(0)
    return transformers.FalconModel(
        transformers.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    ).eval()


def test_a_model_that_adds_in_place_does_not_change_what_was_captured() -> None:
    """Falcon's layer adds the attention's output to the tensor that its MLP returned."""
    model = falcon()
    input_ids_BT = torch.arange(1, 8)[None]
    not_copied = []
    handle = model.h[0].mlp.register_forward_hook(lambda _module, _args, output: not_copied.append(output))
    values = capture(model, named_sites(model), input_ids_BT, torch.ones_like(input_ids_BT))
    handle.remove()
    with torch.inference_mode():
        mlp_out = model.h[0].mlp(values["layers.0.mlp_in"])
    torch.testing.assert_close(values["layers.0.mlp_out"], mlp_out)
    assert not torch.allclose(not_copied[0], mlp_out)


def test_roberta_positions_with_left_padding() -> None:
    """RoBERTa counts positions from past its padding id, and would by itself take that id for padding."""
    transformers = import_transformers()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.RobertaConfig(vocab_size=64, max_position_embeddings=40, pad_token_id=1, **sizes)
    model = transformers.RobertaModel(config, add_pooling_layer=False).eval()
    input_ids_BT = torch.tensor([[5, 5, 5, 7, 8, 9], [3, 4, 5, 6, 7, 8]])
    mask_BT = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    ((site,),) = resolve_sites(model, ["layers.1.resid_post"]).values()
    padded = capture(model, [site], input_ids_BT, mask_BT)[site.name]
    alone = capture(model, [site], input_ids_BT[:1, 3:], mask_BT[:1, 3:])[site.name]
    torch.testing.assert_close(padded[0, 3:], alone[0])


def test_widths_are_measured(tiny: tuple[str, Any, Any]) -> None:
    family, model, _ = tiny
    width = {"gpt2": 32, "llama": 24}[family]
    assert set(list_sites(model).values()) == {width}
    inner = {"gpt2": "h.0.mlp.c_fc:out", "llama": "layers.0.mlp.gate_proj:out"}[family]
    names = ["layers.0.resid_post", inner]
    measured = site_widths(model, [site for (site,) in resolve_sites(model, names).values()])
    assert measured == {"layers.0.resid_post": width, inner: {"gpt2": 128, "llama": 40}[family]}


def test_sites_without_a_vector_per_token_are_refused(tiny: tuple[str, Any, Any]) -> None:
    family, model, tokenizer = tiny
    never = Site("never", {"gpt2": "h", "llama": "layers"}[family], "out")
    with pytest.raises(UserError, match="never: a forward pass of this model gives no tensor there"):
        capture(model, [never], *batch(tokenizer, [5]))
    if family == "llama":
        ((rotary,),) = resolve_sites(model, ["rotary_emb:in"]).values()
        assert capture(model, [rotary], *batch(tokenizer, [5, 3]))["rotary_emb:in"].shape == (2, 5, 24)
        ((rotary,),) = resolve_sites(model, ["rotary_emb:out"]).values()
        with pytest.raises(UserError, match=r"rotary_emb:out: its shape \(1, 5, 6\) is not one vector per token"):
            capture(model, [rotary], *batch(tokenizer, [5, 3]))
