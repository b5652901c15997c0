"""Does a model write valid UTF-8, in many scripts; asked of bytes, so only a byte model can fail freely."""

import codecs
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from bltkit.eval.dataset_source import Place
from bltkit.eval.requests import Answer, Continuation, Request, Written
from bltkit.eval.tasks.task import Grade, Item, Metric, Task
from bltkit.vocab import to_bytes

PROMPTS: Mapping[str, str] = {
    "arabic": "في الصباح ذهبنا إلى السوق",
    "armenian": "Այսօր առավոտյան մենք գնացինք շուկա",
    "bengali": "আজ সকালে আমরা বাজারে গেলাম",
    "cyrillic": "Сегодня утром мы пошли на рынок",
    "devanagari": "आज सुबह हम बाज़ार गए",
    "emoji": "😀😃😄😁😆",
    "ethiopic": "ዛሬ ጠዋት ወደ ገበያ ሄድን",
    "georgian": "დღეს დილით ჩვენ ბაზარში წავედით",
    "greek": "Σήμερα το πρωί πήγαμε στην αγορά",
    "han": "今天早上我们去市场",
    "hangul": "오늘 아침 우리는 시장에 갔다",
    "hebrew": "הבוקר הלכנו אל השוק",
    "kana": "きょうの あさ わたしたちは いちばへ",
    "khmer": "ព្រឹកនេះយើងទៅផ្សារ",
    "latin": "Ce matin, nous sommes allés boire un café",
    "tamil": "இன்று காலை நாங்கள் சந்தைக்குச் சென்றோம்",
    "thai": "เช้าวันนี้เราไปตลาด",
}
"""Written for this project: "this morning we went to the market", or much the same. Each ends in a character of
several bytes."""


class Utf8Task(Task):
    """Is what a model writes valid UTF-8, in 17 scripts.

    Source: this project's own; nothing of it is published, and it needs no data.

    Each script's prompt is asked about as it is (group `prompt`: whole) and without its last byte, in the middle of a
    character (cut); each of these greedily and `samples` times with a seed (group `decoding`: greedy, sample). 128
    bytes, or until the model ends the text. `valid`: share of texts (prompt and what was written behind it) that are
    valid UTF-8. `invalid_bytes`: share of bytes that are part of no valid character, of those written and those of the
    prompt's cut character. A character that the length limit cuts at the very end is neither valid nor invalid; one
    left unfinished by a model that ends the text there is invalid. Without anything written a whole prompt stays valid.
    Normalisation: none. Known difference between kinds of models: a token model reads the cut character as U+FFFD, and
    does not complete it; compare them by the whole prompts.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {
        "valid": Metric(),
        "invalid_bytes": Metric(better="lower", highest=None),
    }
    damaged: ClassVar[tuple[str, ...]] = ("prompt",)
    level: ClassVar[str | None] = "script"

    kind: Literal["utf8"] = "utf8"
    part: tuple[str, ...] = Field(default=(), description="Scripts; all where empty.", examples=[("greek", "han")])
    max_bytes: PositiveInt = Field(default=128, description="Bytes of a generation.", examples=[9])
    samples: NonNegativeInt = Field(default=1, description="Sampled generations a prompt, beside the greedy one.")
    temperature: PositiveFloat = Field(default=1.0, description="Of the samples.", examples=[0.7])

    def items(self, place: Place) -> Iterator[Item]:
        for script in self.chosen_parts(tuple(PROMPTS)):
            for draw in range(self.samples + 1):
                for cut, form in enumerate(("whole", "cut")):
                    decoding = f"sample-{draw}" if draw else "greedy"
                    yield Item(
                        f"{script}/{form}/{decoding}",
                        {"prompt": PROMPTS[script], "cut": cut},
                        {"script": script, "prompt": form, "decoding": decoding.partition("-")[0]},
                    )

    def requests(self, item: Item) -> tuple[Request, ...]:
        sampled = item.groups["decoding"] == "sample"
        return (
            Continuation(
                prompt_of(item),
                self.max_bytes,
                temperature=self.temperature if sampled else 0.0,
                seed=zlib.crc32(f"{self.seed}/{item.id}".encode()) if sampled else 0,
            ),
        )

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        (answer,) = answers
        assert isinstance(answer, Written), answer
        _, started = faults(prompt_of(item))
        text = prompt_of(item) + answer.data
        invalid, left = faults(text)
        if answer.finish != "length":
            invalid, left = invalid + left, 0
        judged = started + len(answer.data) - left
        return Grade(
            {"valid": float(invalid == 0), "invalid_bytes": (float(invalid), float(judged))},
            {"invalid": invalid, "unfinished": left, "text": text.decode("utf-8", "replace")},
        )


def prompt_of(item: Item) -> bytes:
    """The bytes that are asked about: the prompt, without its last byte if it is to be cut."""
    data = to_bytes(item["prompt"])
    return data[: len(data) - item["cut"]]


def faults(data: bytes) -> tuple[int, int]:
    """(bytes that are part of no valid character, bytes at the end that may still become one)."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    kept = len(decoder.decode(data).encode())
    rest = decoder.getstate()[0]
    if rest[:1] == b"\xed" and rest[1:] > b"\x9f":
        rest = b""  # Python waits for the third byte of a surrogate, though its second one is invalid already
    return len(data) - kept - len(rest), len(rest)
