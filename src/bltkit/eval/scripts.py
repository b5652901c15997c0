"""Scripts of letters, by what their Unicode names begin with: LATIN SMALL LETTER A is Latin."""

import unicodedata
from collections import Counter
from functools import lru_cache

NONE = "none"
"""Where there is no letter at all."""
_CALLED = {"Cjk": "Han"}
_QUALIFIERS = frozenset({"FULLWIDTH", "HALFWIDTH", "MODIFIER", "COMBINING", "MATHEMATICAL", "DOUBLE-STRUCK"})
_MANY = 8
_SAMPLE = 20_000
"""Characters that decide about a text."""


@lru_cache(maxsize=8192)
def script(character: str) -> str | None:
    """Of a letter, or a mark of one script's letters; None for what scripts share: signs, digits, spaces, accents."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    words = [word for word in unicodedata.name(character, "").split() if word not in _QUALIFIERS]
    if not words or words[0] not in _first_words():
        return None  # a combining accent, a letter of mathematics
    name = words[0].capitalize()
    return _CALLED.get(name, name)


@lru_cache(maxsize=1)
def _first_words() -> frozenset[str]:
    """Of the names of letters, those that many letters share: MICRO SIGN is a letter, but there is no script Micro."""
    letters = (chr(code) for code in range(0x41, 0x20000) if unicodedata.category(chr(code)) in ("Lo", "Lu", "Ll"))
    shared = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in letters)
    return frozenset(word for word, count in shared.items() if word and count >= _MANY) - _QUALIFIERS


def main_script(text: str) -> str:
    """That of most letters among the first of a text."""
    found = Counter(own for own in map(script, text[:_SAMPLE]) if own is not None)
    return found.most_common(1)[0][0] if found else NONE
