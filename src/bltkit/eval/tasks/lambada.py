"""LAMBADA: the last word of a passage, which only the whole of it tells (Paperno et al. 2016)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from bltkit.eval.dataset_source import HubSet, Place, Row
from bltkit.eval.requests import Answer, Request, Scored, likelihood
from bltkit.eval.tasks.choice import numbered
from bltkit.eval.tasks.task import Grade, Item, Metric, Task


class Lambada(Task):
    """LAMBADA, 0 shots: `acc` is the share of items whose last word is just what greedy decoding writes, `bpb` the
    bits per byte of " " + that word.

    Source: `lambada_openai.jsonl` (context, continuation), or EleutherAI/lambada_openai, test. Greedy decoding writes
    the word exactly when each of its bytes is the likeliest, so nothing is generated. Normalisation: none. Known
    difference: perplexity per word, which depends on nothing but the same sum, is not given.
    """

    kind: Literal["lambada"] = "lambada"
    metrics: ClassVar[Mapping[str, Metric]] = {"acc": Metric(), "bpb": Metric("lower", highest=None)}
    damaged: ClassVar[tuple[str, ...]] = ("context",)

    def items(self, place: Place) -> Iterator[Item]:
        hub = HubSet("EleutherAI/lambada_openai", "test", "default", _from_hub)
        return numbered(place.rows("lambada_openai.jsonl", hub), "lambada_openai.jsonl", ("context", "continuation"))

    def requests(self, item: Item) -> tuple[Request, ...]:
        return (likelihood(item["context"].rstrip(), f" {item['continuation']}"),)

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        (answer,) = answers
        assert isinstance(answer, Scored)
        bits, size = -answer.logprob / math.log(2), len(f" {item['continuation']}".encode())
        return Grade({"acc": float(answer.greedy), "bpb": (bits, float(size))}, {"gold": item["continuation"]})


def _from_hub(row: Row) -> dict[str, Any]:
    context, _, word = row["text"].rpartition(" ")
    return {"context": context, "continuation": word}
