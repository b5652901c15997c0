"""The `Patches` value: which bytes open a patch, and from it every alignment between bytes and patches.

One boolean tensor `starts[B, T+1]` decides everything (does byte t open a patch; the last column is the byte not yet
seen). A byte is pooled into the patch it lies in (`byte_patch`); its prediction may see the latest patch that is
complete once the byte is known (`byte_latent`). No stage derives alignment a second time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches of B rows of at most T ids.

    starts: [B, T+1]; a row's columns after its own num_bytes are False, and its answer for the next, unseen byte
        stands in column num_bytes[b].
    num_bytes: [B] ids in each row, BOS and EOS included.
    max_patches: size P of the patch axis, at least the number of patches that any row opens among its own bytes.
        A plain integer, known before the forward pass, so that no stage has to ask the device.
    """

    starts: Bool[Tensor, "B T1"]
    num_bytes: Int64[Tensor, " B"]
    max_patches: int

    @classmethod
    def from_starts(
        cls,
        starts: Bool[Tensor, "B T1"],
        num_bytes: Int64[Tensor, " B"] | None = None,
        refusal: tuple[Bool[Tensor, ""], Callable[[], ValueError]] | None = None,
    ) -> "Patches":
        """Check and complete `starts`. The one place that reads from the device, once.

        refusal: a further condition on the device, and the error where it holds; it travels with the same read.

        Raises ValueError where the first byte opens no patch, a patch after BOS is missing (the model would see the
        future), num_bytes does not fit, or `refusal` holds.
        """
        rows, columns = starts.shape
        if num_bytes is None:
            num_bytes = torch.full((rows,), columns - 1, dtype=torch.long, device=starts.device)
        bounds = f"num_bytes must be 1..{columns - 1} in every row"
        if rows == 0 or columns < 2:
            raise ValueError(f"{bounds}, got {num_bytes.tolist()}")
        inside = torch.arange(columns, device=starts.device) <= num_bytes[:, None]
        starts = starts & inside
        own = starts[:, :-1] & inside[:, 1:]
        fits = ((num_bytes >= 1) & (num_bytes < columns)).all()
        refused = fits.new_zeros(()) if refusal is None else refusal[0]
        answers = torch.stack((fits.long(), starts[:, :2].all().long(), refused.long(), own.sum(-1).max()))
        all_fit, all_open, is_refused, max_patches = answers.tolist()
        if not all_fit:
            raise ValueError(f"{bounds}, got {num_bytes.tolist()}")
        if is_refused and refusal is not None:
            raise refusal[1]()
        if not all_open:
            raise ValueError("every row's first two positions must open a patch: BOS is a patch of its own")
        return cls(starts, num_bytes, max_patches)

    @cached_property
    def valid(self) -> Bool[Tensor, "B T"]:
        """Is the column one of the row's own bytes."""
        return torch.arange(self.starts.shape[1] - 1, device=self.starts.device) < self.num_bytes[:, None]

    @cached_property
    def own_starts(self) -> Bool[Tensor, "B T"]:
        """Starts among the row's own bytes, the unseen byte's column left out."""
        return self.starts[:, :-1] & self.valid

    @cached_property
    def byte_patch(self) -> Int64[Tensor, "B T"]:
        """The patch that each byte is pooled into (encoder). Padding repeats the row's last patch."""
        return self.own_starts.cumsum(-1) - 1

    @cached_property
    def byte_latent(self) -> Int64[Tensor, "B T"]:
        """The latest patch that each byte's prediction may see (decoder): complete once the byte is known."""
        return self.starts[:, 1:].cumsum(-1) - 1

    @cached_property
    def num_patches(self) -> Int64[Tensor, " B"]:
        """Patches opened among each row's own bytes."""
        return self.own_starts.sum(-1)

    @cached_property
    def first_byte(self) -> Int64[Tensor, "B P"]:
        """Position of each patch's first byte; columns after num_patches hold num_bytes."""
        rows, length = self.own_starts.shape
        slot = torch.where(self.own_starts, self.byte_patch, self.max_patches)
        position = torch.arange(length, device=slot.device).expand(rows, length)
        first = self.num_bytes[:, None].repeat(1, self.max_patches + 1)
        return first.scatter(1, slot, position)[:, : self.max_patches]

    @cached_property
    def lengths(self) -> Int64[Tensor, "B P"]:
        """Bytes in each patch, zero after num_patches; rows sum to num_bytes."""
        ends = torch.cat([self.first_byte[:, 1:], self.num_bytes[:, None]], 1)
        return ends - self.first_byte

    def to(self, device: torch.device | str) -> "Patches":
        """The same value on another device."""
        return Patches(self.starts.to(device), self.num_bytes.to(device), self.max_patches)
