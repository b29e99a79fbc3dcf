"""SmolLM2's tokenizer, cut from 49,152 tokens to some 1,500: a tiny model need not have more in its embeddings."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from laplora.models.offline import ensure_model
from laplora.prompts.templates import TEMPLATES

#: Of SmolLM2's merges, the first ones; beside them those that the words below need.
MERGES = 1000
#: What the tests' rows are made of stays one token where it was one.
WORDS = """
The the film plot cast score ending dialogue camera work remake was great lovely brilliant moving funny superb awful
boring clumsy terrible dull weak and I say so after seeing it twice Is a good bad neither of them positive negative
neutral message number many Message Topic Sentiment bill card app loan other yes no true false rather very indeed
A B C D E F G H I J K L M N O P Q R S T U V W X Y Z
"""


@cache
def tiny_tokenizer() -> Any:
    """Return the tokenizer; a text of the words above has the tokens that SmolLM2 gives it, under other numbers."""
    source = ensure_model("smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(shutil.copytree(source, name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")))
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in content["model"]["merges"]]
        results = {"".join(pair) for pair in merges}
        ranks = {pair: rank for rank, pair in enumerate(merges)}
        # No tiny model reads the default artifact's template: another vocabulary would be other random models.
        templates = [template.text for name, template in TEMPLATES.items() if name != "subject"]
        texts = [" ".join(WORDS.split()), "\n".join(WORDS.split()), *templates]
        words = {word for word, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str("\n".join(texts))}
        kept = {"".join(pair) for pair in merges[:MERGES]}.union(*(formed(word, ranks) for word in words))
        vocabulary = [token for token in content["model"]["vocab"] if token in kept or token not in results]
        content["model"]["vocab"] = numbers = {token: number for number, token in enumerate(vocabulary)}
        content["model"]["merges"] = [list(pair) for pair in merges if {*pair, "".join(pair)} <= numbers.keys()]
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return AutoTokenizer.from_pretrained(name)


def formed(word: str, ranks: Mapping[tuple[str, ...], int]) -> set[str]:
    """Return the tokens that byte-pair encoding forms on its way through a word."""
    parts, tokens = list(word), set[str]()
    while found := [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]:
        at = min(found)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
        tokens.add(parts[at])
    return tokens


@cache
def encoder_tokenizer() -> Any:
    """Return a tokenizer of the encoders' kind: whole words in lower case, a special token at both ends."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "great", "film", ":", "topic", "of", "?"]
    words += ["the", "was", "dull", "plot"]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    inner.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
