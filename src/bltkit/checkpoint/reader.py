"""From the tensors of a checkpoint's files to modules: joined, widened or put into a form of weights, one by one.

A matrix that gets a form goes from the file's map into it in slices, and its pages are given back: memory holds the
form once, and never an fp32 copy of the model.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bltkit.checkpoint.mapped import FileRows, map_large_blocks, release, trim
from bltkit.checkpoint.names import ROUNDED, Room, TensorPart, rounded_names
from bltkit.checkpoint.weights import Weights
from bltkit.model.blt import Blt
from bltkit.model.embed import NgramEmbedding
from bltkit.model.formed import KINDS, FormedLinear, Int4Linear, Int8Linear, WeightForm
from bltkit.model.fused_linear import Linear
from bltkit.model.quantize import MIN_ELEMENTS, linears_of
from bltkit.model.rounding import GROUP, Matrix, from_nibbles, widen_int4

TABLES = "model.encoder_hash_tok_embedding.weight"
_EMBEDDING = "model.local_encoder.embed_tokens.weight"
_ENCODER_CROSS = "model.local_encoder.cross_attn_layers."

HALVES: dict[torch.dtype, WeightForm] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The form that holds matrices of a file in its own dtype of 16 bits."""


@dataclass(frozen=True)
class Reader:
    """Reads modules that were built on the meta device.

    encoder_cross, tied: what a directory of Hugging Face's does otherwise (`hf_config.read_config`). stored: form of
    the matrices that the file holds rounded. dtype: of everything that gets no form; None: as in the file.
    keep_tables: leave n-gram tables of 16 bits in the file. device_of: of a tensor by its name in the `Blt`, where its
    parts lie on several devices; `device` is then that of everything else.
    """

    weights: Weights
    encoder_cross: int
    tied: bool
    stored: WeightForm | None
    dtype: torch.dtype | None
    device: torch.device
    keep_tables: bool
    device_of: Callable[[str], torch.device] | None = None

    def fill(self, room: Room, form: WeightForm) -> None:
        """Assign every parameter and matrix of a module, then move its buffers. form: of its large matrices.

        Raises ValueError that names the tensor for one that is missing, or of another shape or dtype.
        """
        module, state = room.module, {}
        linears = {f"{path}.weight": (owner, path) for owner, path, _ in linears_of(module)}
        for name, parameter in module.state_dict().items():
            parts, device = room.parts(name, parameter.shape), self._device(room, name)
            rounded = self._rounded(room, name)
            if name in linears and (rounded is not None or form != "fp32"):
                formed = self._formed(rounded, parts, parameter.shape, form, device)
                if formed is not None:
                    owner, path = linears[name]
                    setattr(owner, path.rpartition(".")[2], formed)
                    continue
            if rounded is not None:
                state[name] = self._widened(rounded, parameter.shape, device)
            elif len(parts) == 1:
                state[name] = self._read(parts[0], device)
            else:
                state[name] = self._join(parts, parameter.shape, device)
        module.load_state_dict(state, assign=True)
        for inner in module.modules():
            for name, buffer in inner._buffers.items():
                inner._buffers[name] = None if buffer is None else buffer.to(self.device)
            if isinstance(inner, NgramEmbedding):
                self._leave(inner)

    def _device(self, room: Room, name: str) -> torch.device:
        return self.device if self.device_of is None or not isinstance(room.module, Blt) else self.device_of(name)

    def file_form(self, room: Room) -> WeightForm:
        """The form of 16 bits in whose dtype the file holds the large matrices of a module; fp32 for any other."""
        dtypes = set()
        for _, path, linear in linears_of(room.module):
            if linear.weight.numel() >= MIN_ELEMENTS:
                parts = room.parts(f"{path}.weight", linear.weight.shape)
                dtypes |= {self.weights.dtype(self._source(part.name)) for part in parts}
        return HALVES.get(dtypes.pop() or torch.float32, "fp32") if len(dtypes) == 1 else "fp32"

    def read_matrix(self, rooms: Iterable[Room], linear: Linear) -> Linear:
        """One matrix of modules on the meta device with its weights, in `dtype`."""
        room, path = next((room, path) for room in rooms for _, path, each in linears_of(room.module) if each is linear)
        parts = room.parts(f"{path}.weight", linear.weight.shape)
        with torch.device("meta"):
            result = Linear(linear.in_features, linear.out_features)
        result.weight = nn.Parameter(self._join(parts, linear.weight.shape, self.device), requires_grad=False)
        return result

    def refuse_unexpected(self, rooms: Iterable[Room]) -> None:
        """Raises ValueError for a tensor that nobody reads: the weights are another model's."""
        expected = {name for room in rooms for name in self._expected(room)}
        left = sorted(name for name in self.weights.names() - expected if not self._is_dead(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ValueError(
                f"{self.weights.origin}: unexpected tensor {left[0]}{more}; config.json describes a model without it"
            )

    def _expected(self, room: Room) -> Iterator[str]:
        for name, tensor in room.module.state_dict().items():
            if (rounded := self._rounded(room, name)) is not None:
                yield from rounded_names(rounded, self.stored)
            else:
                yield from (self._source(part.name) for part in room.parts(name, tensor.shape))

    def _rounded(self, room: Room, name: str) -> str | None:
        """The beginning of the names of a matrix's steps and scales; None where the file holds it as it is."""
        if self.stored not in ROUNDED or not name.endswith(".weight"):
            return None
        base = room.rounded + name.removesuffix(".weight")
        return base if f"{base}.steps" in self.weights.names() else None

    def _formed(
        self,
        rounded: str | None,
        parts: Sequence[TensorPart],
        shape: torch.Size,
        form: WeightForm,
        device: torch.device,
    ) -> FormedLinear | None:
        if rounded is not None:
            if form != self.stored:
                return None
            steps, scales, *zeros = self._steps(rounded, shape)
            if form == "int8":
                return Int8Linear(steps, scales.clone())
            formed = Int4Linear.of_nibbles(steps, scales, *zeros)
            release(steps, scales, *zeros)
            return formed
        if shape.numel() < MIN_ELEMENTS:
            return None
        map_large_blocks()
        tensors = [self.weights.read(self._source(part.name), part.shape) for part in parts]
        matrix = Matrix(tensors, device)
        result = KINDS[form].of(matrix) if KINDS[form].fits(matrix) else None
        release(*tensors)
        trim()
        return result

    def _steps(self, rounded: str, shape: torch.Size) -> tuple[Tensor, ...]:
        """Steps, scales and, in int4, zeros as the file holds them."""
        outputs, inputs = shape
        names = rounded_names(rounded, self.stored)
        if self.stored == "int8":
            shapes, dtype = [(outputs, inputs), (outputs,)], torch.int8
        else:
            groups = (outputs, inputs // GROUP)
            shapes, dtype = [(outputs, inputs // 2), groups, groups], torch.uint8
        dtypes = (dtype, *[torch.bfloat16] * (len(names) - 1))
        return tuple(self.weights.read(*each) for each in zip(names, shapes, dtypes, strict=True))

    def _widened(self, rounded: str, shape: torch.Size, device: torch.device) -> Tensor:
        """A rounded matrix as numbers."""
        steps, *rest = self._steps(rounded, shape)
        dtype = self.dtype or torch.bfloat16
        if device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=device)
        if self.stored == "int8":
            wide = steps.float() * rest[0].float()[:, None]
        else:
            wide = widen_int4(from_nibbles(steps), *rest)
        release(steps)
        return wide.to(device=device, dtype=dtype)

    def _read(self, part: TensorPart, device: torch.device) -> Tensor:
        source = self._source(part.name)
        stored = self.weights.read(source, part.shape)
        kept = self.keep_tables and part.name == TABLES and stored.dtype in HALVES
        tensor = stored.to(device=device, dtype=stored.dtype if kept else self.dtype)
        if tensor is not stored and device.type != "meta":
            release(stored)
        # A tied head must not share memory with the embedding: they would be trained as one.
        return tensor.clone() if source == _EMBEDDING != part.name else tensor

    def _join(self, parts: Sequence[TensorPart], shape: torch.Size, device: torch.device) -> Tensor:
        """Parts in one matrix, each converted on its way into it: no second copy, of one part either."""
        stored = [self.weights.read(self._source(part.name), part.shape) for part in parts]
        whole = torch.empty(shape, dtype=self.dtype or stored[0].dtype, device=device)
        for target, tensor in zip(whole.split([part.shape[0] for part in parts]), stored, strict=True):
            target.copy_(tensor)
            release(tensor)
        return whole

    def _leave(self, embed: NgramEmbedding) -> None:
        """Have rows of tables that stay in the file read from there."""
        table = embed.ngrams.detach()
        if self.keep_tables and table.dtype in HALVES:
            embed.rows = FileRows.of(*self.weights.place(TABLES), table)

    def _source(self, name: str) -> str:
        """The tensor of the file that stands for tensor `name`."""
        if name == "lm_head.weight" and self.tied and name not in self.weights.names():
            return _EMBEDDING
        return name.replace(f"{_ENCODER_CROSS}0.", f"{_ENCODER_CROSS}{self.encoder_cross}.")

    def _is_dead(self, name: str) -> bool:
        return any(name.startswith(f"{_ENCODER_CROSS}{i}.") for i in range(self.encoder_cross))
