"""open_clip's text towers, and the tokenizer that comes with it."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.load import import_transformers, load_tokenizer, one_line_errors
from harvest.models.open_clip_towers import import_open_clip, make_model, recipe_of
from harvest.models.text_tower import TextTower


def load_open_clip_text(spec: ModelSpec, device: torch.device | str) -> TextTower:
    """The tower that `encode_text` runs, in `spec.dtype` on `device`."""
    model = make_model(spec, device)
    whole = getattr(model, "text", model)
    if not hasattr(whole, "token_embedding") or getattr(whole, "cls_emb", None) is not None:
        raise UserError(
            f"model {spec.id}: its text tower, a {type(whole).__name__}, is none of open_clip's own that norms all "
            "tokens at its end; its vision tower can be read all the same"
        )
    with one_line_errors(f"model {spec.id}: its text tower cannot be run", spec):
        text = Text(whole)
        return TextTower(text.to(device, getattr(torch, spec.dtype)), fixed_length=text.pooling[0] == "last")


class Text(torch.nn.Module):
    """The text tower of open_clip's `CLIP` or its `TextTransformer`, which have the same parts.

    Theirs takes texts of one length only, and where attention is not causal it attends to padding; this one does not.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = whole.token_embedding, whole.positional_embedding
        self.transformer, self.ln_final, self.text_projection = whole.transformer, whole.ln_final, whole.text_projection
        self.causal_TT: torch.Tensor | None
        self.register_buffer("causal_TT", whole.attn_mask, persistent=False)
        prefix = "" if hasattr(whole, "pool_type") else "text_"
        self.pooling = getattr(whole, f"{prefix}pool_type"), getattr(whole, f"{prefix}eos_id")
        self.config = import_transformers().PreTrainedConfig(
            max_position_embeddings=len(self.positional_embedding), vocab_size=whole.vocab_size
        )

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, position_ids: Any = None
    ) -> Any:
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) if position_ids is None else position_ids
        x_BTD = self.token_embedding(input_ids) + self.positional_embedding[positions]
        x_BTD = self.ln_final(
            self.transformer(x_BTD, attn_mask=self._mask(attention_mask.to(x_BTD.device), x_BTD.dtype))
        )
        pool_type, eos_token_id = self.pooling
        pool = import_open_clip().transformer.text_global_pool
        embedding = pool(x_BTD, input_ids, pool_type, eos_token_id=eos_token_id)
        if isinstance(self.text_projection, torch.nn.Module):
            embedding = self.text_projection(embedding)
        elif self.text_projection is not None:
            embedding = embedding @ self.text_projection
        return SimpleNamespace(pooler_output=embedding)

    def _mask(self, attention_mask_BT: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What is added to attention scores, `(B heads, T, T)`: where a token would see what it may not, a number too
        low to count. It is finite, because padding on the left sees nothing at all."""
        batch, tokens = attention_mask_BT.shape
        heads = next(module.num_heads for module in self.transformer.modules() if hasattr(module, "num_heads"))
        hidden_BTT = attention_mask_BT[:, None, :].expand(batch, tokens, tokens) == 0
        if self.causal_TT is not None:
            hidden_BTT = hidden_BTT | (self.causal_TT[:tokens, :tokens] < 0)
        added = torch.zeros(hidden_BTT.shape, dtype=dtype, device=hidden_BTT.device)
        return added.masked_fill(hidden_BTT, torch.finfo(dtype).min).repeat_interleave(heads, 0)


def load_open_clip_tokenizer(spec: ModelSpec) -> Any:
    """The byte pair encoding that ships with open_clip, or the tokenizer of transformers that the model names."""
    open_clip, text = import_open_clip(), recipe_of(spec).model["text_cfg"]
    settings = dict(text.get("tokenizer_kwargs") or {})
    with one_line_errors(f"model {spec.id}: its tokenizer cannot be made", spec):
        if (name := text.get("hf_tokenizer_name")) is None:
            return OpenClipTokenizer(open_clip.SimpleTokenizer(**settings))
        clean = open_clip.tokenizer.get_clean_fn(settings.pop("clean", "whitespace"))
    if others := sorted(set(settings) - {"strip_sep_token"}):  # there are no separators: texts are cut without them
        raise UserError(f"model {spec.id}: its tokenizer has {others[0]}, which only open_clip itself understands")
    return CleaningTokenizer(load_tokenizer(ModelSpec(id=name)), clean)


class CleaningTokenizer:
    """A tokenizer of transformers that is given texts as open_clip cleans them. Tokens have no place in the text as it
    was, so it is not fast, in transformers' words."""

    is_fast = False

    def __init__(self, tokenizer: Any, clean: Callable[[str], str]) -> None:
        self.tokenizer, self.clean = tokenizer, clean

    def __call__(self, texts: Sequence[str], **how: Any) -> Any:
        return self.tokenizer([self.clean(text) for text in texts], **how)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


class OpenClipTokenizer:
    """open_clip's `SimpleTokenizer` with what `prepare` and `token_bytes` ask of a tokenizer of transformers.

    It cleans texts (character entities, quotation marks, case) before it cuts them, so no token has a place in the
    text: it is not fast, in transformers' words.
    """

    is_fast = False
    chat_template = None

    def __init__(self, simple: Any) -> None:
        self.simple = simple
        self.bos_token_id: int = simple.sot_token_id
        self.eos_token_id: int = simple.eot_token_id
        self.pad_token_id = 0
        self.all_special_ids: list[int] = simple.all_special_ids
        self.added_tokens_decoder = {id_: SimpleNamespace(content=simple.decoder[id_]) for id_ in self.all_special_ids}
        simple.cache.clear()  # holds the special tokens, and nothing else yet: text that spells one is text

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        """Ids without special tokens, as `prepare` wants them."""
        return {"input_ids": [self.simple.encode(text) for text in texts]}

    def __len__(self) -> int:
        return int(self.simple.vocab_size)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.simple.encoder)
