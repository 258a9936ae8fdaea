"""A tiny language model as one GGUF file, with its tokenizer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def tiny_gguf(path: Path) -> np.ndarray[Any, Any]:
    """A Llama of one layer with the vocabulary of printable ASCII; its embedding matrix."""
    width, hidden, vocabulary = 8, 16, [*map(chr, range(33, 127)), "Ġ", "Ċ", "in", "<|end|>"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 2)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * (len(vocabulary) - 1) + [3])
    writer.add_token_merges(["i n"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(len(vocabulary) - 1)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width))
    shapes |= {"ffn_gate": (hidden, width), "ffn_up": (hidden, width), "ffn_down": (width, hidden)}
    shapes |= {"attn_norm": (width,), "ffn_norm": (width,)}
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (len(vocabulary), width), "output_norm.weight": (width,)}
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values["token_embd.weight"]
