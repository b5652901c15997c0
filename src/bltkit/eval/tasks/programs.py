"""Tasks whose answers are programs: what is written is executed with its tests, in a sandbox, and counted by pass@k."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from bltkit.eval.requests import Answer, Continuation, Request, Written, generation
from bltkit.eval.sandbox import Sandbox, SandboxLimits
from bltkit.eval.tasks.task import Grade, Item, Metric, Task

SEVERAL = 0.8
"""Temperature of several samples (Chen et al., 2021, figure 5: best from about 10 samples on)."""


class Programs(Task):
    """Base of HumanEval and MBPP.

    pass@k is the unbiased estimate of the chance that one of k samples passes, from `samples` of them (Chen et al.,
    2021, section 2.1). One greedy sample by default. Only the interpreter's standard library is at hand.

    Known differences from the published protocols: a program has `seconds` of a processor (there: 3 seconds on the
    clock), runs under the name "program" with hashes fixed, and its tests are compiled apart from it.
    """

    metrics: ClassVar[Mapping[str, Metric]] = {"pass@1": Metric(), "pass@10": Metric(), "pass@100": Metric()}
    executes: ClassVar[bool] = True

    samples: PositiveInt = Field(default=1, description="Programs written for each item.", examples=[10])
    k: tuple[Literal[1, 10, 100], ...] = Field(default=(1,), description="Which pass@k are reported.")
    temperature: NonNegativeFloat | None = Field(
        default=None, description="Of the samples; by default 0 (greedy) for one sample, 0.8 for several."
    )
    max_bytes: PositiveInt = Field(default=2048, description="Of a program, at most.", examples=[64])
    seconds: PositiveInt = Field(default=5, description="Of a processor, for each program.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if max(self.k, default=0) > self.samples or 1 not in self.k:
            raise ValueError(f"k = {self.k}: holds 1, and at most samples = {self.samples}; ask for more samples")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples}: greedy, all would be the same; leave temperature out")
        return self

    @abstractmethod
    def prompt(self, item: Item) -> str:
        """What the model continues."""

    @abstractmethod
    def stops(self) -> tuple[str, ...]:
        """What ends a program."""

    @abstractmethod
    def program(self, item: Item, text: str) -> tuple[str, str]:
        """What is executed for an answer: the code, and its tests. Of the undamaged item."""

    def prepare(self) -> None:
        Sandbox.open(self._limits())

    def requests(self, item: Item) -> tuple[Request, ...]:
        prompt, stops = self.prompt(item), self.stops()
        return tuple(self._request(prompt, stops, f"{self.seed}/{item.id}/{sample}") for sample in range(self.samples))

    def grade(self, item: Item, answers: Sequence[Answer]) -> Grade:
        """Raises ValueError where the sandbox is refused."""
        # One after the other: the runner grades several items at a time.
        programs = [self.program(item, answer.text) for answer in answers if isinstance(answer, Written)]
        distinct = list(dict.fromkeys(programs))
        outcomes = dict(zip(distinct, Sandbox(self._limits()).run_all(distinct, workers=1), strict=True))
        results = [outcomes[program] for program in programs]
        passed = sum(result.passed for result in results)
        return Grade(
            {f"pass@{k}": pass_at(k, len(results), passed) for k in self.k},
            {"passed": passed, "samples": len(results), "reasons": [result.reason for result in results]},
        )

    def _request(self, prompt: str, stops: tuple[str, ...], key: str) -> Continuation:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        temperature = self.temperature
        if temperature is None:
            temperature = 0.0 if self.samples == 1 else SEVERAL
        return generation(prompt, self.max_bytes, stops, temperature=temperature, seed=seed)

    def _limits(self) -> SandboxLimits:
        return SandboxLimits(cpu_seconds=self.seconds, wall_seconds=4 * self.seconds)


def pass_at(k: int, n: int, passed: int) -> float:
    """1 - C(n - passed, k) / C(n, k), as a product of quotients (Chen et al., 2021, figure 3). 1 <= k <= n."""
    assert 1 <= k <= n and 0 <= passed <= n
    if n - passed < k:
        return 1.0
    missed = 1.0
    for size in range(n - passed + 1, n + 1):
        missed *= 1.0 - k / size
    return 1.0 - missed
