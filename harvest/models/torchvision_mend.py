"""Make torchvision importable beside a CPU build of torch."""

import importlib.util
import sys

import torch

_kept_alive: list[torch.library.Library] = []


def mend_torchvision() -> None:
    """Import torchvision if it is installed; where that fails for want of its compiled operators, declare them first.

    torchvision's Linux wheels are CUDA builds. Beside a CPU build of torch their compiled operators do not load, and the
    import dies with "operator torchvision::nms does not exist". transformers imports torchvision whenever it is
    installed, so every model would be out of reach. torchvision needs no more than these two operators' schemas to be
    imported; calling one still fails with its own message. Beside a matching torch the import works and nothing changes.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        # The failed import leaves some submodules behind, which must run again to find the operators.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # noqa: TOR901
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)  # a library that is garbage-collected takes its operators with it
        import torchvision  # noqa: F401
