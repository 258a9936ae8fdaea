"""Make torchvision importable beside a CPU build of torch."""

import importlib.util
import sys

import torch

_kept_alive: list[torch.library.Library] = []


def mend_torchvision() -> None:
    """Import torchvision if it is installed; where that fails for want of its compiled operators, declare them first.

    torchvision's Linux wheels are CUDA builds. Beside a CPU build of torch their compiled operators do not load, and
    the import dies with "operator torchvision::nms does not exist". transformers imports torchvision whenever it is
    installed, so every model would be out of reach. torchvision needs no more than the schemas of two operators to be
    imported; calling one still fails with its own message. Beside a torch that matches nothing changes.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        # The failed import leaves some submodules behind, which must run again to find the operators.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _kept_alive.append(library)  # a library that is garbage-collected takes its operators with it
        importlib.import_module("torchvision")
