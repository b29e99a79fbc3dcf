"""Bounds on a text's tokens before it is tokenised: how few there can be, and where the text may be cut.

A byte-level BPE writes each byte of the text into exactly one token, so a text of B bytes has at least
B / (bytes of the vocabulary's longest token) tokens. Its pre-tokeniser splits the text from left to right by a
pattern that never looks back. In "letter, space, letter" a piece of GPT-2's or Llama 3's pattern starts at the space
whatever precedes it, and ends there whatever follows. So the tokens of the text from that space on are the last tokens
of the whole text, and those of the text before it the first ones. Other tokenisers have no bound.
"""

from __future__ import annotations

import json
import re
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import Any

_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: The pre-tokenisers that are known to split as the first lines of this file say.
_KNOWN = (
    [_BYTES | {"use_regex": True}],  # GPT-2
    [{"type": "Digits", "individual_digits": True}, _BYTES | {"use_regex": True}],  # SmolLM
    [
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        _BYTES | {"use_regex": False},
    ],
)
_CUT = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])")


@dataclass(frozen=True)
class TokenBounds:
    """Bounds of one tokeniser.

    Attributes:
        longest_bytes: most UTF-8 bytes of a prompt that one token can stand for; None where there is no such bound.
        longest_special: most characters of a special token's name.
    """

    longest_bytes: int | None
    longest_special: int = 0

    def fewest(self, size_bytes: int) -> int:
        """Return how many tokens a text of this many bytes has at least; 1 where nothing is known."""
        return 1 if self.longest_bytes is None else max(1, -(-size_bytes // self.longest_bytes))

    def tail(self, text: str, tokens: int) -> str:
        """Return the end of a text with at least this many tokens, its tokens those of the whole; or the whole text."""
        if self.longest_bytes is None:
            return text
        wanted = tokens * self.longest_bytes  # characters: each has a byte or more, so that is enough
        end = len(text) - wanted
        while end > 0:
            # The last place to cut before what is wanted; the search goes further back, in ever larger windows.
            start = max(0, end - wanted)
            last = deque(_CUT.finditer(text, start, end + 2), maxlen=1)
            if last:
                return text[last[0].start() :]
            end, wanted = start, 2 * wanted
        return text

    def start(self, text: str, tokens: int) -> str:
        """Return the start of a text with at least this many tokens, its tokens those of the whole; or all of it."""
        if self.longest_bytes is None:
            return text
        cut = _CUT.search(text, tokens * self.longest_bytes)
        return text if cut is None else text[: cut.start()]


#: Nothing is known.
UNBOUNDED = TokenBounds(None)


def token_bounds(tokenizer: Any) -> TokenBounds:
    """Return the bounds of a tokeniser of transformers: no bound unless all of its parts are known to keep one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return UNBOUNDED
    parts = json.loads(backend.to_str())
    added = parts["added_tokens"]
    model = parts["model"]
    plain = (
        parts["normalizer"] is None
        and model["type"] == "BPE"
        and not (model.get("unk_token") or model.get("byte_fallback") or model.get("dropout"))
        and _splits_as_known(parts["pre_tokenizer"])
        # A name with a space in it could lie across a cut, and one that swallows spaces stands for any number of them.
        and not any(" " in t["content"] or t["lstrip"] or t["rstrip"] for t in added)
    )
    if not plain:
        return UNBOUNDED
    names = [t["content"] for t in added]
    # A byte-level vocabulary writes each byte as one character.
    longest = max(chain(map(len, model["vocab"]), (len(name.encode()) for name in names)))
    return TokenBounds(longest, max(map(len, names), default=0))


def _splits_as_known(pre_tokenizer: Any) -> bool:
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps] in _KNOWN
