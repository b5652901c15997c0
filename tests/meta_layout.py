"""A small BLT in Meta's two layouts, written down from the public facts about names, shapes and fields.

Shares nothing with `bltkit.convert`: names are spelled out here. Every value differs from every default that a reader
might put in its place.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LOCAL, GLOBAL, PATCHER, K, BUCKETS, SIZES = 16, 48, 24, 2, 31, [3, 5]
FFN_LOCAL, FFN_GLOBAL, FFN_PATCHER = 48, 128, 64  # 42 and 128 rounded up to 16; 64 to 32

ARGS: dict[str, Any] = {
    "vocab_size": 260, "dim_local_encoder": LOCAL, "dim_local_decoder": LOCAL, "dim_global": GLOBAL,
    "n_heads_local_encoder": 2, "n_heads_local_decoder": 2, "n_heads_global": 6, "n_kv_heads": None,
    "n_kv_heads_global": 3, "n_layers_local_encoder": 1, "n_layers_local_decoder": 2, "n_layers_global": 2,
    "multiple_of": 16, "norm_eps": 2e-5, "rope_theta": 123456.0, "max_seqlen": 300, "max_encoder_seq_length": 700,
    "cross_attn_k": K, "pm_size": 0, "cross_attn_all_layers_encoder": False, "cross_attn_all_layers_decoder": True,
    "encoder_hash_byte_group_size": SIZES, "encoder_hash_byte_group_vocab": BUCKETS,
    "encoder_hash_byte_group_nb_functions": 2, "local_attention_window_len": 20, "seed": 42,
}  # fmt: skip

PARAMS: dict[str, Any] = {
    "entropy_model": {
        "dim": PATCHER, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 260, "max_seqlen": 900,
        "norm_eps": 3e-6, "rope_theta": 77777.0, "multiple_of": 32, "attn_bias_type": "local_block_causal",
        "sliding_window": 12, "dropout": 0.0,
    },
    "data": {
        "patcher_args": {
            "threshold": 1.40625, "threshold_add": None, "monotonicity": False, "max_patch_length": None,
            "patch_size": 4.5, "patching_mode": "entropy",
        },
        "seq_len": 4096,
    },
    "name": "größe",
}  # fmt: skip


def layer(prefix: str, width: int, kv_width: int, ffn: int) -> dict[str, tuple[int, ...]]:
    """One transformer layer under Meta's names."""
    return {
        f"{prefix}.attention.wq.weight": (width, width),
        f"{prefix}.attention.wk.weight": (kv_width, width),
        f"{prefix}.attention.wv.weight": (kv_width, width),
        f"{prefix}.attention.wo.weight": (width, width),
        f"{prefix}.feed_forward.w1.weight": (ffn, width),
        f"{prefix}.feed_forward.w2.weight": (width, ffn),
        f"{prefix}.feed_forward.w3.weight": (ffn, width),
        f"{prefix}.attention_norm.weight": (width,),
        f"{prefix}.ffn_norm.weight": (width,),
    }


def cross(prefix: str) -> dict[str, tuple[int, ...]]:
    """One block of cross-attention."""
    square = {f"{prefix}.{name}.weight": (LOCAL, LOCAL) for name in ("wq", "wk", "wv", "wo")}
    return square | {f"{prefix}.cross_attn_norm_{name}.weight": (LOCAL,) for name in ("q", "kv")}


def model_shapes() -> dict[str, tuple[int, ...]]:
    """The BLT's tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        f"encoder_hash_tok_embedding.{index}.weight": (BUCKETS, LOCAL) for index in range(2 * len(SIZES))
    }
    shapes |= {
        "local_encoder.tok_embeddings.weight": (260, LOCAL),
        "local_encoder.patch_embedding_projection.weight": (K * LOCAL, LOCAL),
        "global_transformer.token_embedding_projection.weight": (GLOBAL, K * LOCAL),
        "local_decoder.patch_embedding_projection.weight": (K * LOCAL, GLOBAL),
        "local_decoder.norm.weight": (LOCAL,),
        "local_decoder.output.weight": (260, LOCAL),
    }
    shapes |= layer("local_encoder.layers.0", LOCAL, LOCAL, FFN_LOCAL) | cross("local_encoder.cross_attn_layers.0")
    for index in range(2):
        shapes |= layer(f"global_transformer.layers.{index}", GLOBAL, GLOBAL // 2, FFN_GLOBAL)
        shapes |= layer(f"local_decoder.layers.{index}", LOCAL, LOCAL, FFN_LOCAL)
        shapes |= cross(f"local_decoder.cross_attn_layers.{index}")
    return shapes


def entropy_shapes() -> dict[str, tuple[int, ...]]:
    """The entropy model's tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (260, PATCHER),
        "norm.weight": (PATCHER,),
        "output.weight": (260, PATCHER),
    }
    for index in range(2):
        shapes |= layer(f"layers.{index}", PATCHER, PATCHER // 2, FFN_PATCHER)
    return shapes


def draw(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.2).to(dtype) for name, shape in shapes.items()}


def write_json(path: Path, data: Any) -> None:
    """As the published files are: indented, not ASCII only."""
    path.write_text(json.dumps(data, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def write_original(folder: Path, *, entropy_dtype: torch.dtype = torch.float32) -> Path:
    """`blt/` and `entropy_model/` with params.json and consolidated.pth, and a licence."""
    for name in ("blt", "entropy_model"):
        (folder / name).mkdir(parents=True)
    write_json(folder / "blt" / "params.json", {"model": ARGS, "data": PARAMS["data"]})
    torch.save({"model": draw(model_shapes(), 1, torch.bfloat16)}, folder / "blt" / "consolidated.pth")
    _write_entropy(folder / "entropy_model", entropy_dtype)
    (folder / "LICENSE").write_bytes(b"Terms\r\nof use\n")
    return folder


def write_hub(folder: Path, *, entropy_dtype: torch.dtype = torch.float32) -> Path:
    """config.json with args, model.safetensors and `entropy_model/`, and a licence."""
    (folder / "entropy_model").mkdir(parents=True)
    write_json(folder / "config.json", {"args": ARGS})
    save_file(draw(model_shapes(), 1, torch.bfloat16), folder / "model.safetensors", metadata={"made": "by hand"})
    _write_entropy(folder / "entropy_model", entropy_dtype)
    (folder / "LICENSE").write_bytes(b"Terms\r\nof use\n")
    return folder


def _write_entropy(folder: Path, dtype: torch.dtype) -> None:
    write_json(folder / "params.json", PARAMS)
    torch.save({"model": draw(entropy_shapes(), 2, dtype)}, folder / "consolidated.pth")


def edit(path: Path, section: str, key: str, *value: Any) -> None:
    """Set field `key` of a dotted section of a JSON file, or remove it where no value is given."""
    data = json.loads(path.read_text(encoding="utf-8"))
    table = data
    for word in filter(None, section.split(".")):
        table = table[word]
    if value:
        table[key] = copy.deepcopy(value[0])
    else:
        del table[key]
    write_json(path, data)
