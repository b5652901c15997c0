"""Characters that a terminal obeys, or that hide what is there, made visible as escapes such as `\\x1b`.

A model, a key in a data file and a file's name are data: none of them may move the cursor, set the window's title or
turn the order of letters around. Newline, tab and CR before a newline stay. So do U+200C and U+200D: Persian, Hindi and
emoji need them, and they change neither the terminal nor the order. Soft hyphens, directional marks, zero-width spaces,
byte-order marks and tag characters do not: a reader could not tell a text with them from one without.
"""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, Arabic letter mark, zero width, directional marks
    "\u2028-\u202e\u2060-\u206f"  # line separators, overrides and isolates of direction, invisible operators
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # byte-order mark, annotations, tags
    "\ud800-\udfff]"  # bytes of file names that are not UTF-8, and halves of surrogate pairs
    "|\r(?!\n)"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` as a terminal may show it: harmless, in one order, with nothing hidden."""
    return _HIDDEN.sub(lambda match: _escape(match[0]), text)


def visible_json(line: str) -> str:
    """The same for a line of JSON, which stays JSON with the same value."""
    return _HIDDEN.sub(lambda match: _json_escape(match[0]), line)


def encodable_json(line: str) -> str:
    """A line of JSON whose lone surrogates are escaped: no encoding can write them."""
    return _SURROGATE.sub(lambda match: _json_escape(match[0]), line)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, as Python keeps it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode()


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
