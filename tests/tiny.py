"""Tiny real models with real tokenizers and image processors, made from configs without the network."""

from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers, processors, trainers

from harvest.models.load import import_transformers

TEXT = """The capital of France is Paris, and the capital of Norway is Oslo. Water boils at 100 degrees; ice melts at 0.
A dictionary reads activations and writes them again: few latents are active at once, and most of them are silent.

def add(first, second):
    \"\"\"Return the sum of two numbers.\"\"\"
    total = first + second  # an ordinary comment
    return total

Returns
-------
array : (rows, width)
\tThe rows of the store, one vector for each token of the text.

Naïve café, smörgåsbord, Ελληνικά, 你好世界, emoji 🤗🌍, "quotes", e = mc², 50 %, and so on… and on, and on, again.
"""


def tiny_gpt2(directory: Path, **config: Any) -> Path:
    """A GPT-2 of three layers and width 32 in float32. Token id 0 is an ordinary token, and no token starts a text."""
    transformers = import_transformers()
    tokenizer = byte_tokenizer(special_tokens=[])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    sizes = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": len(wrapped)}
    ends = {"bos_token_id": wrapped.eos_token_id, "eos_token_id": wrapped.eos_token_id}
    made = transformers.GPT2Config(**{**sizes, **ends, "initializer_range": 0.1, **config})
    return _save(transformers.GPT2LMHeadModel, made, wrapped, directory)


def tiny_llama(directory: Path, **config: Any) -> Path:
    """A Llama of four layers and width 24 in float32, with grouped heads. Token id 0 is the BOS that starts a text."""
    transformers = import_transformers()
    tokenizer = byte_tokenizer(special_tokens=["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    sizes = {"num_hidden_layers": 4, "hidden_size": 24, "intermediate_size": 40, "vocab_size": len(wrapped)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    made = transformers.LlamaConfig(**{**sizes, **heads, **ends, "initializer_range": 0.1, **config})
    return _save(transformers.LlamaForCausalLM, made, wrapped, directory)


def byte_tokenizer(special_tokens: list[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE of about 400 tokens, trained on `TEXT`; special tokens take the first ids."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def _save(kind: Any, config: Any, tokenizer: Any, directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_clip(directory: Path, kind: str = "CLIPModel") -> Path:
    """A CLIP of three layers and width 32 (text 24) in float32, whose images of 24 pixels have a class token and 9
    patches; whole, or the part of it that is the class `kind`. Its tokens are bytes."""
    transformers = import_transformers()
    text = {"hidden_size": 24, "vocab_size": 514, "max_position_embeddings": 32, "pad_token_id": 513}
    text |= _LAYERS | {"bos_token_id": 512, "eos_token_id": 513, "projection_dim": 20}
    vision = _LAYERS | _IMAGES | {"projection_dim": 20}
    configs = {
        "CLIPModel": lambda: transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20),
        "CLIPTextModel": lambda: transformers.CLIPTextConfig(**text),
    }
    config = configs.get(kind, lambda: transformers.CLIPVisionConfig(**vision))()
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*bytes_, *(f"{byte}</w>" for byte in bytes_), "<|startoftext|>", "<|endoftext|>"]
    transformers.CLIPTokenizer({token: id_ for id_, token in enumerate(tokens)}, []).save_pretrained(directory)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    return _save_vision(getattr(transformers, kind), config, processor, directory)


def tiny_siglip(directory: Path, kind: str = "SiglipModel", text: dict[str, Any] | None = None, **vision: Any) -> Path:
    """A SigLIP of three layers and width 32 (text 24) in float32, whose images of 24 pixels have 9 patches and nothing
    else; whole, or its vision model."""
    transformers = import_transformers()
    sizes = {"hidden_size": 24, "vocab_size": 64, "max_position_embeddings": 16, "projection_size": 32}
    text = _LAYERS | sizes | (text or {})
    vision = _LAYERS | _IMAGES | vision
    if kind == "SiglipModel":
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    else:
        config = transformers.SiglipVisionConfig(**vision)
    processor = transformers.SiglipImageProcessorPil(size={"height": 24, "width": 24})
    return _save_vision(getattr(transformers, kind), config, processor, directory)


def tiny_vit(directory: Path, kind: str = "ViTModel") -> Path:
    """A ViT of three layers and width 32 in float32, whose images of 24 pixels have a class token and 9 patches."""
    transformers = import_transformers()
    processor = transformers.ViTImageProcessorPil(size={"height": 24, "width": 24})
    return _save_vision(getattr(transformers, kind), transformers.ViTConfig(**_LAYERS, **_IMAGES), processor, directory)


def tiny_dino(directory: Path) -> Path:
    """A DINOv2 of three layers and width 32 in float32: a class token, 4 registers and 9 patches; scaled layers."""
    transformers = import_transformers()
    sizes = {key: value for key, value in (_LAYERS | _IMAGES).items() if key != "intermediate_size"}
    config = transformers.Dinov2WithRegistersConfig(**sizes, layerscale_value=0.5)
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    return _save_vision(transformers.Dinov2WithRegistersModel, config, processor, directory)


_LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
_IMAGES = {"hidden_size": 32, "image_size": 24, "patch_size": 8}


def tiny_open_clip(text: dict[str, Any] | None = None, **vision: Any) -> dict[str, Any]:
    """The architecture of an open_clip model of three layers and width 32 (text 16), for images of 24 pixels with a
    class token and 9 patches, and for texts of 16 tokens."""
    return {
        "embed_dim": 20,
        "vision_cfg": {"layers": 3, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 24} | vision,
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2} | (text or {}),
    }


def _save_vision(kind: Any, config: Any, processor: Any, directory: Path) -> Path:
    """With noise on new weights, many of which are zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
