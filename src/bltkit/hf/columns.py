"""The ids of a batch as they become certain, column by column, with the calls of transformers' loop for each."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Columns:
    """Emitted ids, scores and logits of a batch, and which rows have ended.

    Criteria are called with the ids so far and the tuple of scores, the streamer with the new ids, in this order, once
    for each column. A row that has ended gets the padding id where some criterion looks for EOS.
    """

    def __init__(self, input_ids: Int64[Tensor, "B T"], criteria: Any, config: Any, streamer: Any) -> None:
        """criteria: a `StoppingCriteriaList`. config: the prepared `GenerationConfig`."""
        self.ids, self.criteria, self.streamer = input_ids, criteria, streamer
        self.pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.as_dict: bool = bool(config.return_dict_in_generate)
        pad = config._pad_token_tensor
        self.pad: Tensor | None = None if pad is None else pad.to(input_ids.device)
        self.unfinished = torch.ones(len(input_ids), dtype=torch.long, device=input_ids.device)
        self.scores: tuple[Tensor, ...] | None = () if self.as_dict and config.output_scores else None
        self.logits: tuple[Tensor, ...] | None = () if self.as_dict and config.output_logits else None
        self.growing = [True] * len(input_ids)
        """Does the row take further ids of the model."""
        self.count = 0
        """Columns emitted."""
        self.ended = False

    @property
    def stored(self) -> bool:
        """Are scores or logits handed out."""
        return self.scores is not None or self.logits is not None

    def emit(
        self,
        tokens: Int64[Tensor, " B"],
        scores: Float[Tensor, "B V"] | None,
        logits: Float[Tensor, "B V"] | None,
    ) -> None:
        """Append the next id of every row. scores, logits: where `stored`; what they say of an ended row is dropped."""
        if self.scores is not None and scores is not None:
            self.scores += (self._of_running(scores, certain_pad=True),)
        if self.logits is not None and logits is not None:
            self.logits += (self._of_running(logits, certain_pad=False),)
        if self.pads:
            assert self.pad is not None
            tokens = tokens * self.unfinished + self.pad * (1 - self.unfinished)
        self.ids = torch.cat((self.ids, tokens[:, None]), -1)
        self.unfinished = self.unfinished & ~self.criteria(self.ids, self.scores)
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        self.count += 1
        running = self.unfinished.tolist()
        self.ended = not any(running)
        if self.pads:
            self.growing = [bool(value) for value in running]

    def _of_running(self, values: Tensor, certain_pad: bool) -> Tensor:
        """An ended row predicts its padding id with certainty: its transition score is 0."""
        if all(self.growing):
            return values
        ended = torch.zeros_like(values)
        if certain_pad and self.pad is not None:
            ended = ended.fill_(-torch.inf)
            ended[:, int(self.pad)] = 0
        running = torch.tensor(self.growing, device=values.device)
        return torch.where(running[:, None], values, ended)

    def result(self) -> Any:
        """What `generate` returns."""
        if self.streamer is not None:
            self.streamer.end()
        if not self.as_dict:
            return self.ids
        from transformers.generation import GenerateDecoderOnlyOutput

        return GenerateDecoderOnlyOutput(sequences=self.ids, scores=self.scores, logits=self.logits)
