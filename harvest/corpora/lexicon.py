"""Labels for tokens, from lists of words."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from harvest.errors import UserError


class Lexicon:
    """Label -> what it matches: whole words whatever their case, and regular expressions, written between slashes."""

    def __init__(self, labels: dict[str, list[re.Pattern[str]]]) -> None:
        self.labels = labels

    @property
    def names(self) -> list[str]:
        return list(self.labels)

    @staticmethod
    def read(key: str, path: str) -> "Lexicon":
        """From a YAML file; a mistake is a `UserError` that begins with `key` and names the entry."""
        try:
            values = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{key}: {path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{key}: {path}: is not YAML: {error}") from None
        if not isinstance(values, dict) or not values:
            raise UserError(
                f"{key}: {path}: must map each label to its words, such as `colour: [red, blue, /gr[ae]y/]`"
            )
        return Lexicon({str(name): list(_patterns(f"{key}: {path}: {name}", words)) for name, words in values.items()})

    def label(self, text: str, offsets: np.ndarray) -> np.ndarray:
        """For each token, the number of its label, or -1: `(T,)` int32.

        `offsets` `(T, 2)`: where each token begins and ends in the text. A match labels the token that holds its last
        character (the last such token); of two labels the first one counts.
        """
        found = np.full(len(offsets), -1, np.int32)
        for number, patterns in reversed(list(enumerate(self.labels.values()))):
            ends = [match.end() for pattern in patterns for match in pattern.finditer(text) if match.group()]
            tokens = np.searchsorted(offsets[:, 0], np.array(ends, np.int64) - 1, side="right") - 1
            holds = (tokens >= 0) & (offsets[tokens, 1] >= np.array(ends, np.int64))
            found[tokens[holds]] = number
        return found


def _patterns(where: str, words: Any) -> Iterator[re.Pattern[str]]:
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"{where}: must be a list of words or /regular expressions/")
    # The longest first, so that `New York City` is not taken for `New York`.
    literal = [re.escape(word) for word in sorted(words, key=len, reverse=True) if not _is_regex(word)]
    if literal:
        yield re.compile(rf"(?<!\w)(?:{'|'.join(literal)})(?!\w)", re.IGNORECASE)
    for word in filter(_is_regex, words):
        try:
            re.compile(word[1:-1])  # by itself first: `a)(b` is one only within what is put around it
            yield re.compile(rf"(?<!\w)(?:{word[1:-1]})(?!\w)")
        except re.error as error:
            hint = "; write (?i:…) to ignore case" if "global flags" in error.msg else ""
            raise UserError(f"{where}: {word}: is no regular expression: {error}{hint}") from None


def _is_regex(word: str) -> bool:
    return len(word) > 2 and word.startswith("/") and word.endswith("/")
