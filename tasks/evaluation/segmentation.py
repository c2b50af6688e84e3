"""Text in, comparable words out: words for scripts with spaces, single characters for Chinese and Japanese."""

import re
from collections.abc import Sequence

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_CHARACTER = re.compile(f"[{CJK}]")
_WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")
_PIECE = re.compile(f"[{CJK}]|[^\\W_{CJK}]+|\\s+|.", re.DOTALL)


def words(text: str) -> list[str]:
    """Lower-case words and single CJK characters; punctuation and underscores only separate.

    >>> words("Refund order A-17: 退款吧!")
    ['refund', 'order', 'a', '17', '退', '款', '吧']
    """
    return _WORD.findall(text.lower())


def pieces(text: str) -> Sequence[str]:
    """The whole text, cut where a reader sees one thing end and the next begin; joined again it is the text.

    >>> pieces("退款, now")
    ['退', '款', ',', ' ', 'now']
    """
    return _PIECE.findall(text)


def has_cjk(text: str) -> bool:
    """Whether any character is Chinese or Japanese."""
    return _CHARACTER.search(text) is not None


def cjk_share(text: str) -> float:
    """Share of CJK characters among words, where a CJK character counts as a word; 0 for a text without words."""
    found = words(text)
    return sum(map(has_cjk, found)) / len(found) if found else 0.0
