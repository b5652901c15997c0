"""bltkit in transformers' library: importing this package registers our model types with its Auto classes.

    import bltkit.hf
    model = AutoModelForCausalLM.from_pretrained("a checkpoint of ours")

`bltkit.accelerate` gives transformers' own `BltForCausalLM` our `generate`. Nothing else of bltkit imports transformers
for these purposes.
"""

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
except ImportError:
    raise ImportError("bltkit.hf needs transformers: pip install 'bltkit[hf]'") from None

from bltkit.hf.config import BltkitConfig, BltkitEntropyConfig
from bltkit.hf.models import BltkitEntropyForCausalLM, BltkitForCausalLM, BltkitModel

AutoConfig.register(BltkitConfig.model_type, BltkitConfig, exist_ok=True)
AutoConfig.register(BltkitEntropyConfig.model_type, BltkitEntropyConfig, exist_ok=True)
AutoModel.register(BltkitConfig, BltkitModel, exist_ok=True)
AutoModel.register(BltkitEntropyConfig, BltkitEntropyForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(BltkitConfig, BltkitForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(BltkitEntropyConfig, BltkitEntropyForCausalLM, exist_ok=True)

__all__ = [
    "BltkitConfig",
    "BltkitEntropyConfig",
    "BltkitEntropyForCausalLM",
    "BltkitForCausalLM",
    "BltkitModel",
]
