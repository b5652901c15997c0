"""Items of an evaluation to look at: what was asked, what came back, what was right.

Texts are shown as they are: line feeds, tabs, spaces that would not be seen, and what is not UTF-8 (U+FFFD) included.
Which items are shown depends on their ids alone, so two runs over the same data show the same ones.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bltkit.eval.report.stored_runs import StoredRecord, StoredRun, TaskResult, right

_UNSEEN = re.compile(r"^ +| +$|(?<=\n) +| +(?=\n)| {2,}|[\x00-\x1f\u00a0\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\n": "↵\n", "\t": "⇥\t", "\u00a0": "⍽"}


@dataclass(frozen=True)
class Amount:
    """How much of the items is shown: of each kind, and characters of prompts and of answers."""

    items: int
    prompt: int
    answer: int


AMOUNTS = (Amount(4, 900, 500), Amount(2, 500, 300), Amount(1, 300, 160), Amount(0, 0, 0))
"""From much to little: a page takes the first that lets it stay small."""


Seen: TypeAlias = tuple[tuple[str, bool], ...]
"""Pieces of a text, each with whether it is a sign for characters that would not be seen."""


@dataclass(frozen=True)
class ItemChoice:
    """A choice of an item: its text, its log-probability (and that per byte), whether it is right and was taken."""

    text: Seen
    figures: tuple[str, ...]
    is_gold: bool
    is_chosen: bool


@dataclass(frozen=True)
class Reply:
    """What came back from a run. series: the run's number, where there are several; written: texts with their names."""

    series: int | None
    choices: tuple[ItemChoice, ...]
    written: tuple[tuple[str, Seen], ...]
    label: str = ""


@dataclass(frozen=True)
class ItemCard:
    """An item to look at. verdict: right, wrong or nothing; better: the run that answers it better."""

    name: Seen
    prompt: Seen
    replies: tuple[Reply, ...]
    verdict: str = ""
    places: str = ""
    better: str = ""


def chosen(ids: Iterable[str], count: int) -> list[str]:
    """`count` of the ids, spread without regard to their order, the same ones however many others there are between."""
    return sorted(sorted(ids, key=lambda one: hashlib.sha256(one.encode("utf-8", "replace")).digest())[:count])


def samples(run: StoredRun, task: str, amount: Amount) -> tuple[str, list[ItemCard]]:
    """Items of a task that were answered right and such that were not, or any where there is no right; and a line that
    says how many are shown.
    """
    result, entries = run.results.results[task], run.entries[task]
    by_verdict: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for item, entry in entries.items():
        by_verdict[right(entry.metrics.get(result.metric), result.better, result.highest)].append(item)
    if by_verdict[True] or by_verdict[False]:
        by_verdict[None] = []
    cards, words = [], []
    for verdict, name in ((True, "right"), (False, "wrong"), (None, "")):
        picked = chosen(by_verdict[verdict], amount.items)
        cards += [card(run.record(task, item), result, amount, verdict) for item in picked]
        if by_verdict[verdict]:
            words.append(f"{len(picked)} of {len(by_verdict[verdict]):,} {name}".rstrip())
    return f"Items: {', '.join(words)}", cards


def card(record: StoredRecord, result: TaskResult, amount: Amount, verdict: bool | None) -> ItemCard:
    """One item: its prompt, its choices with their likelihoods or the answer, and what else its record shows."""
    places = " · ".join(record.groups.values())
    return ItemCard(
        visible(record.id, 80),
        prompt(record, amount),
        (Reply(None, *replies(record, result, amount)),),
        verdict={True: "right", False: "wrong", None: ""}[verdict],
        places=f" · {places}"[:120] if places else "",
    )


def prompt(record: StoredRecord, amount: Amount) -> Seen:
    """The beginning that all requests of the item share."""
    return visible(shared_context(asked_texts(record.requests)), amount.prompt)


def replies(
    record: StoredRecord, result: TaskResult, amount: Amount
) -> tuple[tuple[ItemChoice, ...], tuple[tuple[str, Seen], ...]]:
    """Choices, where the item has some, and texts with their names: what was written, and the rest of the record."""
    texts = asked_texts(record.requests)
    shared = len(shared_context(texts))
    ends = [text[shared:] for text in texts]
    rest = {key: value for key, value in record.shown.items() if value is not None}
    choices: list[ItemChoice] = []
    written: list[tuple[str, Seen]] = []
    logprobs = [one.get("logprob") for one in record.answers]
    if len(texts) > 1 and any(value is not None for value in logprobs):
        gold = rest.pop("gold", None)
        took = rest.get("chosen_norm" if result.metric == "acc_norm" and "chosen_norm" in rest else "chosen")
        for key in ("chosen", "chosen_norm", "logprobs"):
            rest.pop(key, None)
        for at, (end, logprob) in enumerate(zip(ends, logprobs, strict=False)):
            # A byte that is not UTF-8 is one character here, and "?" is as long.
            size = len(str(record.requests[at].get("continuation", "")).encode("utf-8", "replace"))
            shares = [logprob]
            if result.metric == "acc_norm":
                shares.append(logprob / size if logprob is not None and size else None)
            figures = tuple("—" if one is None else f"{one:.2f}" for one in shares)
            choices.append(ItemChoice(visible(end, amount.answer), figures, at == gold, at == took))
    else:
        for end, answer in list(zip(ends, record.answers, strict=False))[:4]:
            if len(texts) > 1:
                written.append(("", visible(end, amount.answer)))
            written.append(("answer", visible(answer_text(answer), amount.answer)))
    for key, value in list(rest.items())[:8]:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        written.append((key[:60], visible(shown, amount.answer)))
    return tuple(choices), tuple(written)


def asked_texts(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every request as one text; a context that a record leaves out is that of the request before."""
    texts, context = [], ""
    for request in requests:
        context = request.get("context", context)
        texts.append(str(request.get("text", context + request.get("continuation", ""))))
    return texts


def answer_text(answer: Mapping[str, Any]) -> str:
    """What was written, or how likely what was asked about is."""
    if "text" in answer:
        return str(answer["text"])
    if "logprob" in answer:
        return f"ln p = {answer['logprob']:.3f}, {'greedy' if answer.get('greedy') else 'not greedy'}"
    if answer.get("bytes"):
        return f"{answer['nats'] / math.log(2) / answer['bytes']:.3f} bits per byte of {answer['bytes']:,}"
    return json.dumps(answer, ensure_ascii=False)


def shared_context(texts: Sequence[str]) -> str:
    """What texts have in common in front, to the end of a word; all of a single one."""
    if len(texts) < 2:
        return "".join(texts)
    first, last = min(texts), max(texts)  # what these two share, all in between share
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    shared = first[:same]
    if all(text[len(shared) :][:1] in ("", " ", "\n") for text in texts) and shared[-1:] not in ("", " ", "\n"):
        return shared
    return shared[: max(shared.rfind(" "), shared.rfind("\n"), 0)]


def visible(text: str, budget: int) -> Seen:
    """Text with its white space to be seen, at most `budget` characters of it: what is too long lacks its middle."""
    if len(text) <= budget:
        return tuple(_seen(text))
    front = budget // 5
    cut = (f" … {len(text) - budget:,} characters … ", True)
    return (*_seen(text[:front]), cut, *_seen(text[-(budget - front) :] if budget else ""))


def _seen(text: str) -> Iterator[tuple[str, bool]]:
    end = 0
    for match in _UNSEEN.finditer(text):
        sign = match.group()
        yield text[end : match.start()], False
        yield _SIGNS.get(sign) or ("·" * len(sign) if sign[0] == " " else f"U+{ord(sign):04X}"), True
        end = match.end()
    yield text[end:], False
