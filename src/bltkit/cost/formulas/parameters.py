"""Numbers of parameters, those of weights in another form included."""

from torch import nn

from bltkit.model.quantize import FormedLinear


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, those of weights in another form included."""
    formed = (inner for inner in module.modules() if isinstance(inner, FormedLinear))
    return sum(weight.numel() for weight in module.parameters()) + sum(
        one.in_features * one.out_features for one in formed
    )
