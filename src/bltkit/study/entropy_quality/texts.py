"""The texts that are measured: what the user names, or what every user has, one for each type of data.

Of a long source, stretches spread evenly over all of it are measured, cut between characters; what lies behind each
may prime the context-mixing model. The default texts need no download: prose and code come with Python, the binary one
is compiled code and a shared library, the structured one is written out of Python's own tables. Nothing that every
user has holds running text in many scripts, so a short one was written for this.
"""

import csv
import io
import json
import marshal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from bltkit.data import read_documents
from bltkit.data.sources import StdlibSource

PIECE_BYTES = 4096
"""Longest stretch that is taken at one place, about: models see little more of a text at once."""

_MODULES = (
    "argparse.py",
    "csv.py",
    "difflib.py",
    "heapq.py",
    "json/decoder.py",
    "pathlib.py",
    "shutil.py",
    "zipfile.py",
)


@dataclass(frozen=True)
class StudyText:
    """What is measured, and what a model that learns may read before."""

    name: str
    source: str
    data: bytes
    primed: bytes

    @property
    def digest(self) -> str:
        """Of both parts."""
        return sha256(b"%d:" % len(self.data) + self.data + self.primed).hexdigest()[:16]


def read_texts(sources: Mapping[str, str], num_bytes: int, primed_bytes: int) -> list[StudyText]:
    """Of each source (a file, a folder with all files below it, a glob, a data source such as FILE.jsonl.zst), by name.

    Without sources the default ones. num_bytes: measured of each, at most. primed_bytes: to prime with, at most.

    Raises ValueError for a source without text.
    """
    if not sources:
        whole = {name: ("default", make()) for name, make in DEFAULTS.items()}
    else:
        whole = {name: (source, _read(source)) for name, source in sources.items()}
    return [StudyText(name, source, *excerpt(data, num_bytes, primed_bytes)) for name, (source, data) in whole.items()]


def excerpt(data: bytes, num_bytes: int, primed_bytes: int) -> tuple[bytes, bytes]:
    """Stretches of `data`, `num_bytes` together at most, and of what lies between them `primed_bytes` at most.

    All of a text that is not longer. Stretches begin where a character does.
    """
    if len(data) <= num_bytes:
        return data, b""
    count = -(-num_bytes // PIECE_BYTES)
    size, primed = num_bytes // count, primed_bytes // count
    begins = [number * len(data) // count for number in range(count)]
    ends = [*begins[1:], len(data)]
    places = [(_at_character(data, begin), end) for begin, end in zip(begins, ends, strict=True)]
    middles = [_at_character(data, min(begin + size, end)) for begin, end in places]
    taken = [data[begin:middle] for (begin, _), middle in zip(places, middles, strict=True)]
    between = [data[middle : min(middle + primed, end)] for (_, end), middle in zip(places, middles, strict=True)]
    return b"".join(taken), b"".join(between)


def _read(source: str) -> bytes:
    folder = Path(source).expanduser()
    documents = read_documents([str(folder / "**" / "*") if folder.is_dir() else source])
    return b"".join(document.data for document in documents)


def _at_character(data: bytes, at: int) -> int:
    """The last place from `at` backwards where a character begins; `at` where there is none near."""
    for back in range(min(4, at + 1)):
        if at - back >= len(data) or data[at - back] & 0xC0 != 0x80:
            return at - back
    return at


def _prose() -> bytes:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def _modules() -> dict[str, bytes]:
    return {one.name: one.data for one in StdlibSource().documents() if one.name in _MODULES}


def _code() -> bytes:
    return b"".join(_modules().values())


def _structured() -> bytes:
    """JSON, CSV and XML of Python's tables: named characters, properties of characters, types of files."""
    import html.entities
    import mimetypes
    import plistlib
    import unicodedata

    entities = [{"name": name, "codes": [ord(one) for one in text]} for name, text in html.entities.html5.items()]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(("code", "name", "category", "bidirectional", "combining", "decomposition"))
    for code in range(0x20, 0x500):
        one = chr(code)
        kind = unicodedata.category(one), unicodedata.bidirectional(one), unicodedata.combining(one)
        writer.writerow((f"{code:04X}", unicodedata.name(one, ""), *kind, unicodedata.decomposition(one)))
    types = {name: {"type": kind, "binary": not kind.startswith("text")} for name, kind in mimetypes.types_map.items()}
    return json.dumps(entities, indent=1).encode()[:65536] + table.getvalue().encode() + plistlib.dumps(types)


def _binary() -> bytes:
    """What .pyc files hold, and as much from the middle of a shared library of machine code."""
    compiled = b"".join(
        marshal.dumps(compile(data, name, "exec", dont_inherit=True)) for name, data in _modules().items()
    )
    machine = Path(str(import_module("numpy._core._multiarray_umath").__file__)).read_bytes()
    middle = len(machine) // 2
    return compiled + machine[middle : middle + len(compiled)]


def _scripts() -> bytes:
    return "\n".join(_SENTENCES).encode()


DEFAULTS: Mapping[str, Callable[[], bytes]] = {
    "prose": _prose,
    "code": _code,
    "structured": _structured,
    "binary": _binary,
    "scripts": _scripts,
}
"""A type of data -> how its default text is made."""

_SENTENCES = (
    "Утром мы вышли из дома и пошли к реке. Вода была холодной, но дети всё равно хотели купаться. Старый рыбак "
    "сидел на берегу и молча смотрел на лодки. Он сказал, что вечером будет дождь, и мы вернулись раньше.",
    "Το πρωί βγήκαμε από το σπίτι και πήγαμε στο ποτάμι. Το νερό ήταν κρύο, αλλά τα παιδιά ήθελαν να κολυμπήσουν. "
    "Ένας γέρος ψαράς καθόταν στην όχθη και κοίταζε τις βάρκες. Είπε ότι το βράδυ θα βρέξει.",
    "في الصباح خرجنا من البيت وذهبنا إلى النهر. كان الماء باردا، لكن الأطفال أرادوا أن يسبحوا. جلس صياد عجوز على "
    "الضفة ونظر إلى القوارب. قال إن المطر سينزل في المساء، فرجعنا إلى البيت.",
    "בבוקר יצאנו מהבית והלכנו אל הנהר. המים היו קרים, אבל הילדים רצו לשחות. דייג זקן ישב על הגדה והסתכל על הסירות. "
    "הוא אמר שבערב ירד גשם, ולכן חזרנו הביתה מוקדם.",
    "सुबह हम घर से निकले और नदी की ओर गए। पानी ठंडा था, लेकिन बच्चे तैरना चाहते थे। एक बूढ़ा मछुआरा किनारे पर बैठा था और "
    "नावों को देख रहा था। उसने कहा कि शाम को बारिश होगी।",
    "ตอนเช้าเราออกจากบ้านและเดินไปที่แม่น้ำ น้ำเย็นมาก แต่เด็กๆ อยากว่ายน้ำ ชาวประมงแก่คนหนึ่งนั่งอยู่ริมฝั่งและมองดูเรือ เขาบอกว่าตอนเย็นฝนจะตก",
    "早上我们离开家，走到河边。水很冷，可是孩子们还是想游泳。一个老渔夫坐在岸上，看着河里的船。他说晚上会下雨，"
    "所以我们早早地回家了。第二天天气很好，我们又去了一次。",
    "朝、私たちは家を出て川まで歩いた。水は冷たかったが、子どもたちは泳ぎたがった。年をとった漁師が岸にすわって舟を見ていた。"
    "夕方には雨が降ると言ったので、早めに家へ帰った。",
    "아침에 우리는 집을 나와 강으로 걸어갔다. 물은 차가웠지만 아이들은 헤엄치고 싶어 했다. 늙은 어부가 강가에 앉아 "
    "배를 바라보고 있었다. 저녁에 비가 올 거라고 해서 우리는 일찍 돌아왔다.",
    "დილით სახლიდან გამოვედით და მდინარესთან წავედით. წყალი ცივი იყო, მაგრამ ბავშვებს ცურვა უნდოდათ. მოხუცი მეთევზე "
    "ნაპირზე იჯდა და ნავებს უყურებდა. მან თქვა, რომ საღამოს იწვიმებს.",
)
