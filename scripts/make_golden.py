"""Makes tests/golden: what `transformers` computes on tiny random models, for those without it.

    python -m scripts.make_golden        (from the repository's root; needs the `peer` extra)

`cases.json` holds each model's config.json, tensor shapes, seed and the SHA-256 of its weights, which are a
function of seed and name (tests/recipe.py); `cases.npz` holds ids, entropies, starts and logits. Of the
logits of position t the columns t % 4, t % 4 + 4, ... are kept: every position and every byte is checked at
a quarter of the size.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from tests import hf, reference
from tests.golden_files import GOLDEN, kept_logits, weights_sha256

TEXT = "Ein kühler Wind, ein kühler: x_1 = 2"

SHAPES = {
    "as_released": hf.Shape(
        k=2,
        decoder=hf.Stack(layers=2),
        latent=hf.Stack(width=32, layers=2, heads=4, kv_heads=4),
        patcher=hf.Stack(width=24, layers=2, ffn=40),
    ),
    "k1_no_windows": hf.Shape(k=1, latent=hf.Stack(width=24), window=None, patcher_window=None),
    "k3_grouped_heads": hf.Shape(
        k=3,
        encoder=hf.Stack(heads=4, kv_heads=2),
        decoder=hf.Stack(layers=2, heads=4, kv_heads=1),
        latent=hf.Stack(width=32, layers=2, heads=4, kv_heads=2),
        patcher=hf.Stack(width=32, layers=2, heads=4, kv_heads=1),
    ),
    "k4_two_hash_functions": hf.Shape(k=4, latent=hf.Stack(width=64), hash_functions=2, hash_vocab=37),
    "few_group_sizes": hf.Shape(k=2, hash_functions=2, hash_vocab=16, group_sizes=(2, 5), window=16),
    "deep_narrow_window": hf.Shape(
        k=2,
        encoder=hf.Stack(layers=3),
        decoder=hf.Stack(layers=3),
        latent=hf.Stack(width=24, layers=3),
        window=4,
        patcher_window=4,
    ),
    "encoder_every_layer": hf.Shape(k=2, encoder_every_layer=True),
    # This layout knows no documents: BOS and EOS inside a row are ids like any other.
    "two_documents_unseen": hf.Shape(k=2, decoder=hf.Stack(layers=2)),
    "bos_alone": hf.Shape(k=3, decoder=hf.Stack(layers=2)),
}


def row_of(name: str) -> tuple[int, ...]:
    if name == "bos_alone":
        return (1,)
    if name == "two_documents_unseen":
        return (*hf.text_ids("Wort für Wort"), 2, *hf.text_ids("\0one\x7f more"), 2)
    return hf.text_ids(TEXT)


def main() -> None:
    entries: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    worst = 0.0
    for seed, (name, shape) in enumerate(SHAPES.items()):
        ids = row_of(name)
        model = hf.build(hf.Case(shape, seed, ids))
        weights, config = hf.weights_of(model), json.loads(model.config.to_json_string())
        entropy, logits = hf.entropies(model, ids), hf.logits(model, ids)
        threshold = config["patching_threshold"]
        margin = float(np.abs(entropy[1:] - threshold).min(initial=1.0))
        assert margin > hf.MIN_GAP, f"{name}: an entropy lies {margin} from the threshold"
        starts: NDArray[np.bool_] = np.array([True, True, *(entropy[1:] > threshold)])
        # The oracle gives patch lengths, not starts; its own choice must be the one recorded.
        lengths = model.model.patcher(torch.tensor([ids]), patch_size=4, threshold=threshold)[1][0].tolist()
        assert reference.starts_from_lengths(lengths, len(ids)) == starts.tolist(), name
        worst = max(worst, float(np.abs(reference.run(weights, config, ids) - logits).max()))
        entries[name] = {
            "seed": seed,
            "weights_sha256": weights_sha256(weights),
            "threshold_margin": margin,
            "shapes": {key: list(value.shape) for key, value in sorted(weights.items())},
            "config": config,
        }
        arrays[f"{name}/ids"] = np.array(ids, dtype=np.int64)
        arrays[f"{name}/entropies"] = entropy
        arrays[f"{name}/starts"] = starts
        arrays[f"{name}/logits"] = kept_logits(logits)
    made_with = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    GOLDEN.mkdir(parents=True, exist_ok=True)
    table = {"made_with": made_with, "reference_max_deviation": worst, "cases": entries}
    (GOLDEN / "cases.json").write_text(json.dumps(table, separators=(",", ":")) + "\n")
    np.savez_compressed(GOLDEN / "cases.npz", allow_pickle=False, **arrays)
    report(GOLDEN, worst)


def report(directory: Path, worst: float) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    print(f"{sizes}, {sum(sizes.values())} bytes; tests/reference.py deviates by {worst:.1e} at most")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
