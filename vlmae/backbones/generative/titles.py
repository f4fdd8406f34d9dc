"""Titles as the words of a prompt: cleaned of control tokens and cut to a length.

Titles come from users. One that spells a control token, such as `<|image_pad|>`, would be read as
one: the prompt would then have more image tokens than pictures, or end in the middle.
"""

from __future__ import annotations

import re
from typing import Any


class Titles:
    """Makes the words of a prompt from a clip's title.

    Args:
        tokenizer: of the language model.
        prompt: what stands before every title; left out where a clip has none.
        length: longest title in tokens; more are cut.

    Raises:
        ValueError: `length` is not positive, or `prompt` has control tokens.
    """

    def __init__(self, tokenizer: Any, prompt: str, length: int) -> None:
        if length < 1:
            raise ValueError(f"text_length is {length}: give at least 1")
        self.tokenizer, self.prompt, self.length = tokenizer, prompt, length
        control = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
        longest_first = sorted(control, key=lambda token: (-len(token), token))
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        if self._control.search(prompt):
            raise ValueError(
                f"prompt {prompt!r} has control tokens of the model: give words only, its own "
                "prompt is put around them"
            )

    def words(self, title: str) -> str:
        """The words of a prompt; "" for a clip without a title."""
        # A space in its place, lest what is left and right of it spell another one.
        clean = " ".join(self._control.sub(" ", title).split())
        if not clean:
            return ""
        pieces = self.tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True)
        spans = pieces["offset_mapping"]
        if len(spans) > self.length:
            clean = clean[: spans[self.length - 1][1]]
        return self.prompt + clean
