"""One set of weights for two models: a `BltForCausalLM` of transformers and a `Blt` with its entropy model.

Most tensors are the same `Parameter` objects in both. Query, key and value projections are one matrix here and three
there, as gate and up projections are one here and two there: the joined matrix is allocated once and the parameters of
transformers become views of consecutive rows of it. They stay contiguous leaf parameters, so forward, optimizers,
`state_dict` and `save_pretrained` work as before, and an update in place is seen by both models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bltkit.checkpoint import ScorerModule
from bltkit.checkpoint.names import SCORER_PREFIX, TensorPart, blt_parts, scorer_parts
from bltkit.model import Blt


@dataclass(eq=False)
class Binding:
    """One tensor of ours and the parameters of transformers that hold its rows.

    owner, name: the module of ours and its parameter's name. parts: full names of their parameters. shapes: of each.
    """

    owner: nn.Module
    name: str
    parts: Sequence[str]
    shapes: Sequence[tuple[int, ...]]

    def refresh(self, modules: Mapping[str, nn.Module]) -> None:
        """Make the tensor of ours the memory of the parts, wherever they lie now.

        modules: of the model of transformers as it is now, by name. Nothing moves where it is so already. After
        `model.to(...)` or an assignment of new tensors the parts are copied into a joined matrix once more, one matrix
        at a time. Raises ValueError for a part that is no plain parameter.
        """
        sources = [_source(modules, name, shape) for name, shape in zip(self.parts, self.shapes, strict=True)]
        mine = self.owner._parameters[self.name]
        if len(sources) == 1:
            if mine is not sources[0]:
                self.owner._parameters[self.name] = sources[0]
            return
        if mine is not None and _holds(mine, sources):
            return
        kinds = {(source.dtype, source.device) for source in sources}
        if len(kinds) > 1:
            raise ValueError(
                f"{self.parts[0][1]} and {self.parts[1][1]} differ in dtype or device; convert the model as a whole"
            )
        self.owner._parameters[self.name] = nn.Parameter(_joined(sources), requires_grad=False)


def _source(modules: Mapping[str, nn.Module], name: str, shape: tuple[int, ...]) -> nn.Parameter:
    """The parameter called `name`. Raises ValueError where the engine cannot take it in place of what it computes."""
    path, _, leaf = name.rpartition(".")
    module = modules.get(path)
    if module is None:
        raise ValueError(f"the model has no module {path}, which its config describes")
    if type(module) not in (nn.Linear, nn.Embedding) and len(shape) > 1 and leaf == "weight":
        raise ValueError(
            f"{path} is a {type(module).__name__}, not a plain torch module; merge adapters "
            "(peft: merge_and_unload) and load the model without quantisation"
        )
    source = module._parameters.get(leaf)
    if type(source) is not nn.Parameter or type(source.data) is not Tensor or not source.is_floating_point():
        raise ValueError(f"{name} is no plain floating-point parameter; load the model unquantised and unsharded")
    if source.device.type == "meta":
        raise ValueError(f"{name} is on the meta device: it has no numbers; load the weights before accelerating")
    if tuple(source.shape) != shape:
        raise ValueError(f"{name} has shape {list(source.shape)}; the model's config says {list(shape)}")
    return source


def _holds(joined: Tensor, sources: Sequence[Tensor]) -> bool:
    """Are the sources the consecutive rows of `joined`."""
    address = joined.data_ptr()
    for source in sources:
        fits = source.dtype == joined.dtype and source.device == joined.device and source.is_contiguous()
        if not fits or source.data_ptr() != address:
            return False
        address += source.numel() * source.element_size()
    return address == joined.data_ptr() + joined.numel() * joined.element_size()


def _joined(sources: Sequence[nn.Parameter]) -> Tensor:
    """A matrix with the rows of all sources, which become views of it."""
    first = sources[0]
    with torch.inference_mode(False), torch.no_grad():
        rows = [len(source) for source in sources]
        joined = torch.empty(sum(rows), *first.shape[1:], dtype=first.dtype, device=first.device)
        for source, view in zip(sources, joined.split(rows), strict=True):
            view.copy_(source)
            source.data = view
    return joined


def bindings(model: Blt, scorer: ScorerModule, encoder_cross: int) -> list[Binding]:
    """A binding for every parameter of `model` and `scorer`, which are on the meta device.

    encoder_cross: see `hf_config.Described`.
    """
    result = []
    for owner, name, parts in _parameters(model, scorer):
        names = [part.name.replace(f"{_ENCODER_CROSS}0.", f"{_ENCODER_CROSS}{encoder_cross}.") for part in parts]
        result.append(Binding(owner, name, names, [part.shape for part in parts]))
    return result


def _parameters(model: Blt, scorer: ScorerModule) -> Iterator[tuple[nn.Module, str, tuple[TensorPart, ...]]]:
    for name, parameter in model.named_parameters():
        yield *_place(model, name), blt_parts(name, parameter.shape)
    for name, parameter in scorer.named_parameters():
        yield *_place(scorer, name), scorer_parts(name, parameter.shape, SCORER_PREFIX)


def _place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


_ENCODER_CROSS = "model.local_encoder.cross_attn_layers."
