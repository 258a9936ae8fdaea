"""Read activations out of a forward pass, which ends as soon as the last of them is there."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from harvest.errors import UserError
from harvest.models.load import input_device, position_offset, takes


@dataclass(frozen=True)
class Site:
    """A place in a model: what goes `in` or comes `out` of the module at `path` (the empty path is the model)."""

    name: str
    path: str
    side: Literal["in", "out"]


class _AllCaptured(Exception):  # noqa: N818
    """Ends a forward pass from inside a hook; no error."""


def capture(
    model: torch.nn.Module,
    sites: Collection[Site],
    input_ids_BT: torch.Tensor,
    attention_mask_BT: torch.Tensor,
    take: Callable[[Site, torch.Tensor], torch.Tensor] = lambda _, x_BTD: x_BTD.clone(),
) -> dict[str, torch.Tensor]:
    """Site name -> its activations `(B, T, width)` on the model's device, from one pass that stops after the last one.

    `attention_mask_BT` is 1 at tokens and 0 at padding, on either side; what is captured at padding means nothing.
    `take` copies what is wanted of them.
    Several vectors per token, such as one a head `(B, T, heads, width)`, are one long one. Some experts see all texts'
    tokens as one list `(B T, width)`.
    Raises `UserError` where a site is never reached or has no vector per token.
    """

    def take_checked(site: Site, value: torch.Tensor) -> torch.Tensor:
        if (x_BTD := _vectors(value, input_ids_BT)) is None:
            raise UserError(
                f"{site.name}: its shape {tuple(value.shape)} is not one vector per token {tuple(input_ids_BT.shape)}"
            )
        return take(site, x_BTD)

    captured = run_until_captured(model, sites, text_inputs(model, input_ids_BT, attention_mask_BT), take_checked)
    for site in sites:
        if site.name not in captured:
            raise UserError(f"{site.name}: a forward pass of this model gives no tensor there")
    return {site.name: captured[site.name] for site in sites}


def _vectors(value: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor | None:
    if value.ndim == 2 and len(value) == ids_BT.numel():
        value = value.reshape(*ids_BT.shape, -1)
    return value.flatten(2) if value.ndim > 2 and value.shape[:2] == ids_BT.shape else None


def site_widths(model: torch.nn.Module, sites: Collection[Site]) -> dict[str, int]:
    """Site name -> width of its activation vectors, seen by running the model on a few tokens."""
    return {name: values.shape[-1] for name, values in capture(model, sites, *few_tokens()).items()}


def widths_where_given(model: torch.nn.Module, sites: Collection[Site]) -> dict[str, int | None]:
    """`site_widths`, but None for a site that is never reached or has no vector per token."""
    ids_BT, mask_BT = few_tokens()
    captured = run_until_captured(model, sites, text_inputs(model, ids_BT, mask_BT))
    vectors = {name: _vectors(value, ids_BT) for name, value in captured.items()}
    widths: dict[str, int | None] = {site.name: None for site in sites}
    return widths | {name: x_BTD.shape[-1] for name, x_BTD in vectors.items() if x_BTD is not None}


def few_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both `(2, 11)`: a shape that heads, layers and experts do not come in by chance."""
    return torch.zeros((2, 11), dtype=torch.long), torch.ones((2, 11), dtype=torch.long)


@torch.inference_mode()
def run_until_captured(
    model: torch.nn.Module,
    sites: Collection[Site],
    inputs: Mapping[str, torch.Tensor],
    take: Callable[[Site, torch.Tensor], torch.Tensor] = lambda _, value: value.clone(),
) -> dict[str, torch.Tensor]:
    """What each site holds in one pass of `model(**inputs)`; a site that is not reached, or is no tensor, is absent.

    `take` gives what is wanted of it as a copy, because some models go on to change the tensor in place: Falcon adds
    the attention's output to the MLP's.
    """
    captured: dict[str, torch.Tensor] = {}

    def keep(site: Site, value: Any) -> None:
        # A module that runs twice in a pass is captured at its first run.
        if isinstance(value, torch.Tensor) and site.name not in captured:
            captured[site.name] = take(site, value)
        if len(captured) == len(names):
            raise _AllCaptured

    names = {site.name for site in sites}
    handles = []
    try:
        for site in sites:
            module = model.get_submodule(site.path)
            if site.side == "in":
                handles.append(module.register_forward_pre_hook(_input_hook(site, keep), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_output_hook(site, keep)))
        model(**inputs)
    except _AllCaptured:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _input_hook(site: Site, keep: Any) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        keep(site, kwargs["hidden_states"] if "hidden_states" in kwargs else next(tensors, None))

    return hook


def _output_hook(site: Site, keep: Any) -> Any:
    def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Attention returns its weights too, and a whole model a record; the activations come first in both.
        values = tuple(output.values()) if isinstance(output, dict) else output
        value = values[0] if isinstance(values, tuple | list) and values else values
        # A hook point of TransformerLens knows how to lay out what it sees, such as heads after tokens.
        conversion = getattr(module, "hook_conversion", None)
        keep(site, value if conversion is None else conversion.convert(value))

    return hook


def text_inputs(
    model: torch.nn.Module, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What a text model takes, on its device; texts may be padded on either side."""
    device = input_device(model)
    inputs = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT}
    starts_late = bool((attention_mask_BT[:, 1:] > attention_mask_BT[:, :-1]).any())
    if starts_late and takes(model, "position_ids"):
        # Models number the columns, so padding on the left would move every text's positions.
        positions_BT = (attention_mask_BT.long().cumsum(1) - 1).clamp(min=0)
        inputs["position_ids"] = positions_BT + position_offset(model)
    if device.type == "meta":
        # Models ask whether the mask is 1 everywhere, which a tensor without values can't tell; without it, it is.
        del inputs["attention_mask"]
    return {name: tensor.to(device) for name, tensor in inputs.items()}
