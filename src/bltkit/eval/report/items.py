"""Items of an evaluation to look at: what was asked, what came back, what was right.

Texts are shown as they are: line feeds, tabs, spaces that would not be seen, and what is not UTF-8 (U+FFFD) included.
Which items are shown depends on their ids alone, so two runs over the same data show the same ones.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bltkit.eval.report.stored_runs import StoredRecord, StoredRun, TaskResult, right
from bltkit.views.html import Html, Node, escape, join, table, tag

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


def chosen(ids: Iterable[str], count: int) -> list[str]:
    """`count` of the ids, spread without regard to their order, the same ones however many others there are between."""
    return sorted(sorted(ids, key=lambda one: hashlib.sha256(one.encode("utf-8", "replace")).digest())[:count])


def samples(run: StoredRun, task: str, amount: Amount) -> Html | None:
    """Items of a task that were answered right and such that were not; any, where there is no right."""
    result, entries = run.results.results[task], run.entries[task]
    known: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for item, entry in entries.items():
        known[right(entry.metrics.get(result.metric), result.better, result.highest)].append(item)
    if known[True] or known[False]:
        known[None] = []
    cards, words = [], []
    for verdict, name in ((True, "right"), (False, "wrong"), (None, "")):
        picked = chosen(known[verdict], amount.items)
        cards += [card(run.record(task, item), result, amount, verdict) for item in picked]
        if known[verdict]:
            words.append(f"{len(picked)} of {len(known[verdict]):,} {name}".rstrip())
    if not cards:
        return None
    return tag("details", tag("summary", "Items: ", ", ".join(words)), tag("div", cards, class_="items"))


def card(record: StoredRecord, result: TaskResult, amount: Amount, verdict: bool | None) -> Html:
    """One item: its prompt, its choices with their likelihoods or the answer, and what else its record shows."""
    name = {True: "right", False: "wrong", None: ""}[verdict]
    places = " · ".join(record.groups.values())
    return tag(
        "article",
        tag(
            "h4",
            None if verdict is None else [tag("span", name, class_="good" if verdict else "bad"), " · "],
            visible(record.id, 80),
            f" · {places}"[:120] if places else None,
        ),
        prompt(record, amount),
        replies(record, result, amount),
        class_="item",
    )


def prompt(record: StoredRecord, amount: Amount) -> Html | None:
    """What all requests of the item have in common in front."""
    shared = shared_context(asked_texts(record.requests))
    return tag("pre", visible(shared, amount.prompt)) if shared else None


def replies(record: StoredRecord, result: TaskResult, amount: Amount) -> Html:
    """What came back: the choices in a table, or what was written; then the rest of what the record shows."""
    texts = asked_texts(record.requests)
    ends = [text[len(shared_context(texts)) :] for text in texts]
    rest = {key: value for key, value in record.shown.items() if value is not None}
    parts: list[Node] = []
    logprobs = [one.get("logprob") for one in record.answers]
    if len(texts) > 1 and any(value is not None for value in logprobs):
        gold = rest.pop("gold", None)
        took = rest.get("chosen_norm" if result.metric == "acc_norm" and "chosen_norm" in rest else "chosen")
        for key in ("chosen", "chosen_norm", "logprobs"):
            rest.pop(key, None)
        per_byte = result.metric == "acc_norm"
        rows = []
        for at, (end, logprob) in enumerate(zip(ends, logprobs, strict=False)):
            marks = [
                tag("span", "gold", class_="good") if at == gold else None,
                " " if at == gold and at == took else None,
                tag("span", "chosen", class_="good" if at == gold else "bad") if at == took else None,
            ]
            text = tag("span", visible(end, amount.answer), class_="chosen" if at == took else None)
            # A byte that is not UTF-8 is one character here, and "?" is as long.
            size = len(str(record.requests[at].get("continuation", "")).encode("utf-8", "replace"))
            shares = [logprob, *([logprob / size if logprob is not None and size else None] if per_byte else [])]
            rows.append((text, *("—" if one is None else f"{one:.2f}" for one in shares), join(*marks)))
        heads = ("choice", "ln p", *(["a byte"] if per_byte else []), "")
        parts.append(table(heads, rows, label="choices"))
    else:
        for end, answer in list(zip(ends, record.answers, strict=False))[:4]:
            if len(texts) > 1:
                parts.append(tag("pre", visible(end, amount.answer)))
            parts += [tag("div", "answer", class_="what"), tag("pre", visible(answer_text(answer), amount.answer))]
    for key, value in list(rest.items())[:8]:
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        parts += [tag("div", key[:60], class_="what"), tag("pre", visible(shown, amount.answer))]
    return join(*parts)


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


def visible(text: str, budget: int) -> Html:
    """Text with its white space to be seen, at most `budget` characters of it: what is too long lacks its middle."""
    if len(text) > budget:
        front = budget // 5
        cut = len(text) - budget
        shown = (
            _seen(text[:front]),
            tag("i", f" … {cut:,} characters … "),
            _seen(text[-(budget - front) :] if budget else ""),
        )
        return join(*shown)
    return _seen(text)


def _seen(text: str) -> Html:
    parts, end = [], 0
    for found in _UNSEEN.finditer(text):
        sign = found.group()
        shown = _SIGNS.get(sign) or ("·" * len(sign) if sign[0] == " " else f"U+{ord(sign):04X}")
        parts += [escape(text[end : found.start()]), tag("i", shown)]
        end = found.end()
    return join(*parts, escape(text[end:]))
