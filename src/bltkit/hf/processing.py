"""From raw logits to ids as transformers' loop does it: processors, then the most probable id or a draw."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_READERS = (
    "RepetitionPenaltyLogitsProcessor",
    "NoRepeatNGramLogitsProcessor",
    "SequenceBiasLogitsProcessor",
    "NoBadWordsLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
)
"""Processors of transformers whose scores depend on which ids a row holds."""


class Processors:
    """A `LogitsProcessorList` that does not see padding.

    Processors of transformers that read a row's ids get them without padding, so that a padded row has the scores that
    it has alone. All others, those of the caller among them, are called once for all rows as transformers calls them.
    """

    def __init__(self, processors: Any, real: Bool[Tensor, "B T"] | None) -> None:
        import transformers

        self.real = real
        self.readers = tuple(getattr(transformers, name) for name in _READERS if hasattr(transformers, name))
        self.processors = processors
        if real is not None:
            self.processors = [self._of_single_rows(processor) for processor in processors]

    def __bool__(self) -> bool:
        return len(self.processors) > 0

    def __call__(
        self, rows: Sequence[int], ids: Int64[Tensor, "R L"], logits: Float[Tensor, "R V"]
    ) -> Float[Tensor, "R V"]:
        """Scores of the next id. rows: of the batch, which `ids` (padded) and `logits` belong to."""
        if self.real is None:
            return self.processors(ids, logits)
        scores = logits
        for processor in self.processors:
            if isinstance(processor, self.readers):
                single = [processor(self._unpadded(row, ids[at]), scores[at : at + 1]) for at, row in enumerate(rows)]
                scores = torch.cat(single)
            else:
                scores = processor(ids, scores)
        return scores

    def _of_single_rows(self, processor: Any) -> Any:
        """A reader that left out the padding of each row of the batch, by which it counted, has none to leave out."""
        if isinstance(processor, self.readers) and isinstance(
            getattr(processor, "prompt_ignore_length", None), torch.Tensor
        ):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = None
        return processor

    def _unpadded(self, row: int, ids: Int64[Tensor, " L"]) -> Int64[Tensor, "1 N"]:
        assert self.real is not None
        columns = self.real.shape[1]
        return torch.cat((ids[:columns][self.real[row]], ids[columns:]))[None]


class Noise:
    """The random numbers of `torch.multinomial`, step by step, so that a draft and the choice after it share them.

    A draw of one id is a race: the id with the largest p / q wins, for q from the exponential distribution. Step s of a
    batch takes q[B, V] from torch's generator, in the order of the steps, as a loop without drafts does: the same seed
    gives the same ids, and what is drawn afterwards is the same as well.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.first = rows, 0
        self.steps: list[Float[Tensor, "B V"]] = []
        self.states: list[Tensor | None] = []
        """Of the generator in front of each step."""
        self.device = torch.device("cpu")

    def draw(self, row: int, step: int, scores: Float[Tensor, "1 V"]) -> int:
        """The id of one row at one step."""
        while self.first + len(self.steps) <= step:
            shape, self.device = (self.rows, scores.shape[-1]), scores.device
            generator = _generator(self.device)
            self.states.append(None if generator is None else generator.get_state())
            self.steps.append(torch.empty(shape, dtype=scores.dtype, device=scores.device).exponential_(1))
        return int((scores.softmax(-1)[0] / self.steps[step - self.first][row]).argmax())

    def forget(self, step: int) -> None:
        """Drop what belongs to steps before this one."""
        del self.steps[: step - self.first]
        del self.states[: step - self.first]
        self.first = max(self.first, step)

    def rewind(self) -> None:
        """Give back what was drawn for steps that nobody came to."""
        generator = _generator(self.device)
        if generator is not None and self.states and self.states[0] is not None:
            generator.set_state(self.states[0])


def _generator(device: torch.device) -> torch.Generator | None:
    """torch's own generator of a device; None where its state cannot be set."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator if device.type == "cpu" else None
