"""Put other values in the place of those at a site, while a forward pass goes on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harvest.models.capture import Site


@contextmanager
def spliced(model: torch.nn.Module, replacements: Mapping[Site, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """While this lasts, each site holds what its function makes of the value there, `(B, T, width)`.

    What comes out of a module is replaced for all that reads it. What goes into one is replaced for it alone: a layer's
    input is then what it adds to, too.
    """
    handles = []
    try:
        for site, replace in replacements.items():
            module = model.get_submodule(site.path)
            if site.side == "in":
                handles.append(module.register_forward_pre_hook(_input_hook(replace), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_output_hook(replace)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(replace: Callable[[Tensor], Tensor]) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # The same tensor that is captured there.
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": replace(kwargs["hidden_states"])}
        place = next(i for i, value in enumerate(args) if isinstance(value, Tensor))
        return (*args[:place], replace(args[place]), *args[place + 1 :]), kwargs

    return hook


def _output_hook(replace: Callable[[Tensor], Tensor]) -> Any:
    def hook(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return replace(output)
        if isinstance(output, dict):  # a record of transformers
            first = next(iter(output))
            output[first] = replace(output[first])
            return output
        return type(output)([replace(output[0]), *output[1:]])

    return hook
