"""Texts that are near-copies of another: but for numbers, punctuation and case they share most of their words.

Two texts are alike if their sets of words have a Jaccard similarity (Broder 1997) of 60 % or more: one word of four may
differ. With a name in place of one word 98 to 100 % of the texts of eight data sets are found; 0 to 6.5 % of 200 honest
rows have a near-copy (docs/lab-notes.md). Pairs are found by their rarest words (prefix filtering: Chaudhuri, Ganti and
Kaushik 2006), so that most are never compared.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain

#: Share of all words of two texts, percent, that near-copies have in common.
ALIKE = 60
#: Words that are looked up or compared before only equal sets of words count, in 10 to 15 CPU seconds.
_MOST_STEPS = 200_000_000
#: A word without digits; of scripts that part no words, a character.
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W\\d_\u3040-\u30ff\u3400-\u9fff]+")


def near_copies(texts: Sequence[str], steps: int = _MOST_STEPS) -> tuple[list[int], int]:
    """Return by text the number, from 0, of its leader, its own where it has none, and how many texts were compared.

    Leaders have no leader themselves. A text has the leader that is most alike, of several the first, or that of an
    earlier text with the same words: every text of a group is a near-copy of its leader. The texts after those that
    ``steps`` suffice to compare have a leader only where an earlier text has the same words.
    """
    words = [frozenset(_WORD.findall(text.casefold())) for text in texts]
    frequency = Counter(word for some in words for word in some)
    having, same, found, compared = defaultdict[str, list[int]](list), dict[frozenset[str], int](), list[int](), 0
    for number, own in enumerate(words):
        compared += steps > 0
        leader = same.get(own, number)
        if leader == number and own and steps > 0:
            # A text that is as alike has ``shared`` of these words too, among its own rarest.
            shared = max(1, (needed := -(-ALIKE * len(own) // 100)) // 4)
            rarest = sorted(own, key=lambda word: (frequency[word], word))[: len(own) - needed + shared]
            seen = Counter(chain.from_iterable(having[word] for word in rarest))
            likely = sorted(one for one, count in seen.items() if count >= shared)
            steps -= len(own) + seen.total() + len(own) * len(likely)
            common = {one: len(own & words[one]) for one in likely}
            alike = {one: count / (len(own) + len(words[one]) - count) for one, count in common.items()}
            best = max(alike, key=alike.__getitem__, default=number)
            if alike.get(best, 0.0) >= ALIKE / 100:
                leader = best
            else:
                for word in rarest:
                    having[word].append(number)
        if own:
            same[own] = leader
        found.append(leader)
    return found, compared
