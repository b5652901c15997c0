"""A byte model's tokenizer towards clients: text to ids and back, and names of ids where a format wants text.

BOS and EOS have names that no text holds (they are set in Unicode's noncharacters), so a prompt or a stop string never
means them by accident. A name counts where it is the whole string; anywhere else it is bytes like others.
"""

from collections.abc import Sequence
from functools import cache

from bltkit.data.template import ChatTemplate
from bltkit.vocab import BOS, EOS, OFFSET, decode, to_bytes

BOS_NAME = "\ufdd0bos\ufdd1"
EOS_NAME = "\ufdd0eos\ufdd1"
NAMES = {BOS_NAME: BOS, EOS_NAME: EOS}
"""Strings that stand for an id."""


def ids_of(text: str) -> list[int]:
    """The ids of a text, without BOS; of a name its one id."""
    return [NAMES[text]] if text in NAMES else [byte + OFFSET for byte in to_bytes(text)]


def text_of_ids(ids: Sequence[int]) -> str:
    """The text of ids: the name of an id that has one if it stands alone, else the bytes of those that are bytes."""
    if len(ids) == 1 and ids[0] in NAMES.values():
        return name_of(ids[0])
    return decode(ids).decode("utf-8", "replace")


@cache
def name_of(chosen: int) -> str:
    r"""An id as text: an ASCII character itself, any other byte as `bytes:\xf0`, BOS and EOS by their names."""
    if chosen < OFFSET:
        return next((name for name, value in NAMES.items() if value == chosen), f"\ufdd0{chosen}\ufdd1")
    byte = chosen - OFFSET
    return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"


@cache
def bytes_of(chosen: int) -> tuple[int, ...]:
    """The byte of an id, as a list of one; of a special id none."""
    return (chosen - OFFSET,) if chosen >= OFFSET else ()


def jinja_template(template: ChatTemplate) -> str:
    """The chat template as Hugging Face's clients render it."""
    marks = {name: _quoted(getattr(template, name)) for name in ("turn", "text", "end")}
    role = "('system' if message['role'] == 'developer' else message['role'])"
    turn = "{{{{ {turn} + {role} + {text} + message['content'] + {end} }}}}".format(role=role, **marks)
    opening = "{{{{ {turn} + 'assistant' + {text} }}}}".format(**marks)
    return f"{{% for message in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}"


def _quoted(text: str) -> str:
    """A string literal of Jinja2, whose escapes are Python's."""
    return "'" + text.encode("unicode_escape").decode("ascii").replace("'", "\\'") + "'"
