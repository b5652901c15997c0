"""Directories as `blt eval --out` writes them, of made-up models: all that pages are made from, without a model.

Results are worked out from the records here, in the plainest way, so that pages can be held against both.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Item = dict[str, Any]
ESTIMATED = ("n", "value", "stderr", "interval", "interval_method", "chance", "better", "highest")
DRAWS = 60
SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_physics",
    "computer_security", "econometrics", "formal_logic", "high_school_european_history", "human_aging", "jurisprudence",
    "machine_learning", "marketing", "moral_disputes", "nutrition", "philosophy", "prehistory", "sociology", "virology",
)  # fmt: skip
LANGUAGES = ("arm_e", "bul", "dut", "fre", "geo", "gre", "hun", "ice", "kor", "vie_hanoi")
WORDS = [
    "the",
    "river",
    "of",
    "a",
    "small",
    "town",
    "rose",
    "again",
    "and",
    "the",
    "people",
    "who",
    "lived",
    "beside",
    "it",
    "carried",
    "what",
    "they",
    "could",
    "up",
    "the",
    "hill",
    "while",
    "children",
    "counted",
    "lamps",
    "in",
    "windows",
    "that",
    "nobody",
    "had",
    "shut",
    "before",
    "the",
    "rain",
    "began",
    "to",
    "fall",
    "on",
    "slate",
    "roofs",
]


def write_run(
    directory: Path,
    *,
    name: str = "bltkit:tiny",
    kind: str = "bltkit",
    skill: float = 0.6,
    seed: int = 0,
    noise: str | None = None,
    limit: int | None = None,
    count: int = 120,
    tasks: Sequence[str] = ("hellaswag", "mmlu", "cute:spell", "g2p", "translation", "bits_per_byte"),
    change: Callable[[str, Item], Item | None] = lambda task, item: item,
) -> Path:
    """A run's directory. The data are the same for all runs, the answers those of a model of this skill.

    change: (task, record) -> the record as it is to be written; None leaves it out.
    """
    results = {}
    (directory / "records").mkdir(parents=True)
    for task in tasks:
        rng = random.Random(repr((name, seed, task, noise)))
        made = [MAKERS[task](at, random.Random(f"{task} {at}"), rng, skill) for at in range(count)]
        items = [item for item in (change(task, one) for one in made) if item is not None]
        items = [{**item, "asked": sha256(item["requests"])} for item in items]
        lines = [json.dumps(item) + "\n" for item in items]
        (directory / "records" / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        results[task] = result_of(task, items)
    whole = {
        "format": 1,
        "model": {"name": name, "kind": kind, "fingerprint": sha256([name, seed])},
        "seed": seed,
        "limit": limit,
        "noise": noise,
        "command": f"blt eval --model {name} --tasks {','.join(tasks)} --out runs/{directory.name}",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "results": results,
    }
    (directory / "results.json").write_text(json.dumps(whole), encoding="utf-8")
    return directory


def sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def result_of(task: str, items: Sequence[Item]) -> dict[str, Any]:
    """A task's part of results.json."""
    kinds = METRICS[task]
    level = next(iter(items[0]["groups"]), None)
    metrics = {
        metric: figure(metric, items) | {"better": better, "highest": highest}
        for metric, (better, highest) in kinds.items()
    }
    names = sorted({item["groups"][level] for item in items}) if level is not None else []
    groups = {
        group: {metric: figure(metric, [one for one in items if one["groups"][level] == group]) for metric in kinds}
        for group in names
    }
    macro: dict[str, Any] | None = None
    main = next(iter(kinds))
    if task == "mmlu":
        mean = sum(groups[group][main]["value"] for group in names) / len(names)
        macro = {
            "level": level,
            main: {
                "n": len(items),
                "value": mean,
                "stderr": 0.02,
                "interval": [mean - 0.04, mean + 0.04],
                "interval_method": "wilson by group",
                "chance": 0.25,
            },
        }
    first = metrics[main] if macro is None else metrics[main] | macro[main]
    return {
        "task": task,
        "metric": main,
        "mean_over": "items" if macro is None else level,
        **{key: first[key] for key in ESTIMATED},
        "metrics": metrics,
        "macro": macro,
        "groups": {} if level is None else {level: groups},
        "prompt_hash": sha256([[item["id"], item["asked"]] for item in items]),
        "shots": 5 if task == "mmlu" else 0,
        "task_seed": 0,
        "cut_contexts": 3 if task == "mmlu" else 0,
        "contexts": 4 * len(items),
        "window": {"size": 2047, "unit": "bytes"},
        "seconds": 12.5,
        "bytes": 1234567,
    }


def value_of(metric: str, items: Sequence[Item]) -> float:
    """A metric over items: the mean, the quotient of what pairs sum up to, BLEU of its counts."""
    given = [item["metrics"][metric] for item in items]
    if metric == "bleu_char":
        sums = [sum(column) for column in zip(*given, strict=True)]
        precision = math.prod(sums[order] / sums[4 + order] for order in range(4)) ** 0.25
        return 100 * precision * min(1.0, math.exp(1 - sums[9] / sums[8]))
    if isinstance(given[0], list):
        return sum(one[0] for one in given) / sum(one[1] for one in given)
    return sum(given) / len(given)


def figure(metric: str, items: Sequence[Item]) -> dict[str, Any]:
    """Value, standard error and interval by plain resampling."""
    rng = random.Random(metric)
    drawn = sorted(value_of(metric, rng.choices(items, k=len(items))) for _ in range(DRAWS))
    mean = sum(drawn) / DRAWS
    error = (sum((one - mean) ** 2 for one in drawn) / DRAWS) ** 0.5
    low, high = drawn[int(0.025 * DRAWS)], drawn[-1 - int(0.025 * DRAWS)]
    spread = low < high
    return {
        "n": len(items),
        "value": value_of(metric, items),
        "stderr": error if spread else None,
        "interval": [low, high] if spread else None,
        "interval_method": "bootstrap" if spread else "no spread",
        "chance": 0.25 if metric in ("acc", "acc_norm") else None,
    }


def sentence(data: random.Random, least: int = 5, most: int = 14) -> str:
    """Some words."""
    return " ".join(data.choice(WORDS) for _ in range(data.randint(least, most)))


def asked(prompt: str) -> list[Item]:
    """A generation's request."""
    return [{"context": prompt, "max_bytes": 64, "stop": ["\n"]}]


def choice(at: int, prompt: str, choices: Sequence[str], gold: int, rng: random.Random, skill: float) -> Item:
    """A record of a task like HellaSwag."""
    logprobs = [
        -2.0 * len(one) / 4 + rng.gauss(0, 4) + (4 * skill if number == gold else 0)
        for number, one in enumerate(choices)
    ]
    chosen = max(range(len(choices)), key=lambda number: logprobs[number])
    norm = max(range(len(choices)), key=lambda number: logprobs[number] / len(choices[number]))
    return {
        "id": f"item-{at}",
        "groups": {},
        "metrics": {"acc_norm": float(norm == gold), "acc": float(chosen == gold)},
        "shown": {"gold": gold, "chosen": chosen, "chosen_norm": norm, "logprobs": logprobs},
        "requests": [{"context": prompt, "continuation": choices[0]}, *({"continuation": one} for one in choices[1:])],
        "answers": [{"logprob": one, "greedy": False, "cut": 0} for one in logprobs],
    }


def hellaswag(at: int, data: random.Random, rng: random.Random, skill: float) -> Item:
    prompt = f"Removing ice from car: {sentence(data, 10, 30).capitalize()}. Then the man"
    return choice(at, prompt, [" " + sentence(data) + "." for _ in range(4)], data.randrange(4), rng, skill)


def mmlu(at: int, data: random.Random, rng: random.Random, skill: float) -> Item:
    subject = SUBJECTS[at % len(SUBJECTS)]
    shots = "\n\n".join(
        f"{sentence(data, 20, 60)}?\nA. one\nB. two\nC. three\nD. four\nAnswer: {'ABCD'[n % 4]}" for n in range(5)
    )
    prompt = f"Questions about {subject}.\n\n{shots}\n\n{sentence(data)}?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    item = choice(at, prompt, [" A", " B", " C", " D"], data.randrange(4), rng, skill + (at % len(SUBJECTS)) / 20)
    return item | {"groups": {"subject": subject}, "metrics": {"acc": item["metrics"]["acc"]}}


def spell(at: int, data: random.Random, rng: random.Random, skill: float) -> Item:
    word = data.choice(WORDS)
    label = " ".join(word)
    hit = rng.random() < skill
    said = label if hit else " ".join(rng.sample(word, len(word))) + "\ufffd"
    return {
        "id": f"spell:{at}",
        "groups": {"task": "spell"},
        "metrics": {"exact_match": float(said == label)},
        "shown": {"gold": label, "answer": said},
        "requests": asked(
            f'Spell out the word.\n\n1. Spell out "cat".\nAnswer: "c a t"\n\n2. Spell out "{word}".\nAnswer: "'
        ),
        "answers": [{"text": said, "finish": "stop"}],
    }


def g2p(at: int, data: random.Random, rng: random.Random, skill: float) -> Item:
    word = data.choice(WORDS)
    errors = sum(rng.random() > skill for _ in word)
    said = " ".join(word[: len(word) - errors])
    return {
        "id": f"word-{at}",
        "groups": {"language": LANGUAGES[at % len(LANGUAGES)]},
        "metrics": {"exact_match": float(errors == 0), "phoneme_error_rate": [errors, len(word)]},
        "shown": {"gold": " ".join(word), "answer": said},
        "requests": asked(f"ɡɛːr: ɡ ɛ r\nхлеб: x lʲ e p\n{word}:"),
        "answers": [{"text": said, "finish": "stop"}],
    }


def translation(at: int, data: random.Random, rng: random.Random, skill: float) -> Item:
    words = sentence(data).split()
    kept = [word for number, word in enumerate(words) if number < 4 or rng.random() < skill]
    totals = [max(0, len(kept) - order) for order in range(4)]
    counts = [min(total, 1 + round(total * skill)) for total in totals]
    return {
        "id": f"pair-{at}",
        "groups": {"pair": ("eng-deu", "deu-eng", "eng-hin", "hin-eng")[at % 4]},
        "metrics": {"bleu_char": [*map(float, (*counts, *totals, len(kept), len(words)))]},
        "shown": {"reference": " ".join(words)},
        "requests": asked(f"English: {sentence(data)}\nहिन्दी: नमस्ते दुनिया\n\nEnglish: {' '.join(words)}\nहिन्दी:"),
        "answers": [{"text": " " + " ".join(kept), "finish": "stop"}],
    }


def bits_per_byte(at: int, data: random.Random, rng: random.Random, skill: float) -> Item:
    size = data.randint(200, 2000)
    return {
        "id": f"document {at}",
        "groups": {"script": ("Latin", "Cyrillic", "Devanagari", "Han")[at % 4]},
        "metrics": {"bits_per_byte": [size * max(0.2, 3 - 2 * skill + rng.gauss(0, 0.3)), size]},
        "shown": {},
        "requests": [{"text": sentence(data, 20, 80), "bytes": size}],
        "answers": [{"nats": 1.5 * size, "bytes": size}],
    }


MAKERS: dict[str, Callable[[int, random.Random, random.Random, float], Item]] = {
    "hellaswag": hellaswag,
    "mmlu": mmlu,
    "cute:spell": spell,
    "g2p": g2p,
    "translation": translation,
    "bits_per_byte": bits_per_byte,
}
METRICS: dict[str, dict[str, tuple[str, float | None]]] = {
    "hellaswag": {"acc_norm": ("higher", 1.0), "acc": ("higher", 1.0)},
    "mmlu": {"acc": ("higher", 1.0)},
    "cute:spell": {"exact_match": ("higher", 1.0)},
    "g2p": {"exact_match": ("higher", 1.0), "phoneme_error_rate": ("lower", None)},
    "translation": {"bleu_char": ("higher", 100.0)},
    "bits_per_byte": {"bits_per_byte": ("lower", None)},
}
