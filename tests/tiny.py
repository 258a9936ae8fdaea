"""Tiny real language models with real tokenizers, made from configs without the network."""

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
    tokenizer = _tokenizer(special_tokens=[])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    sizes = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": len(wrapped)}
    ends = {"bos_token_id": wrapped.eos_token_id, "eos_token_id": wrapped.eos_token_id}
    made = transformers.GPT2Config(**{**sizes, **ends, "initializer_range": 0.1, **config})
    return _save(transformers.GPT2LMHeadModel, made, wrapped, directory)


def tiny_llama(directory: Path, **config: Any) -> Path:
    """A Llama of four layers and width 24 in float32, with grouped heads. Token id 0 is the BOS that starts a text."""
    transformers = import_transformers()
    tokenizer = _tokenizer(special_tokens=["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    sizes = {"num_hidden_layers": 4, "hidden_size": 24, "intermediate_size": 40, "vocab_size": len(wrapped)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    made = transformers.LlamaConfig(**{**sizes, **heads, **ends, "initializer_range": 0.1, **config})
    return _save(transformers.LlamaForCausalLM, made, wrapped, directory)


def _tokenizer(special_tokens: list[str]) -> tokenizers.Tokenizer:
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


def tiny_clip(directory: Path, kind: str = "CLIPModel", **config: Any) -> Path:
    """A CLIP of three layers and width 32 (text 24) in float32, whose images of 24 pixels have 9 patches and a class
    token; whole, or the part of it that is the class `kind`."""
    transformers = import_transformers()
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "projection_dim": 20}
    text = {**sizes, "hidden_size": 24, "vocab_size": 402, "max_position_embeddings": 32}
    ends = {"bos_token_id": 400, "eos_token_id": 401, "pad_token_id": 401}
    vision = {**sizes, "hidden_size": 32, "image_size": 24, "patch_size": 8}
    if kind == "CLIPModel":
        parts = {"text_config": text | ends, "vision_config": vision, "projection_dim": 20}
        made = transformers.CLIPConfig(**parts, **config)
    else:
        made = transformers.CLIPVisionConfig(**vision, **config)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    return _save_vision(getattr(transformers, kind), made, processor, directory)


def _save_vision(kind: Any, config: Any, processor: Any, directory: Path) -> Path:
    """Weights larger than a new model's, so that no site is close to another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        for weight in model.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
