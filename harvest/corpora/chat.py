"""Conversations as text: a tokenizer's own chat template."""

from typing import Any

from harvest.errors import UserError


class Conversations:
    """Called with a list of messages, gives the text that the model's chat template makes of it; None if it cannot."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise UserError("chat: true: this model's tokenizer has no chat template; take an instruction-tuned model")
        self.tokenizer = tokenizer

    def __call__(self, messages: Any) -> str | None:
        from jinja2.exceptions import TemplateError  # transformers has imported it by now

        if not isinstance(messages, list) or not messages:
            return None
        if not all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in messages):
            return None
        try:
            text: str = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, TypeError, ValueError):  # such as roles that do not take turns
            return None
        return text


def plain_text(value: Any) -> str | None:
    """Text as it is."""
    return value if isinstance(value, str) else None
