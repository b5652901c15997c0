"""`bltkit.accelerate` against transformers' own `generate(use_cache=False)`: ids, scores, calls, weights, refusals.

In fp32 another id is accepted only where transformers shows a tie: its two best logits, or an entropy and the
threshold, less than `TIE` apart, or a model whose own fp32 answer is that uncertain (`hf.rounding_error`).
"""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import bltkit
from tests import hf
from tests.natively import needs_library

pytest.importorskip("transformers")

TIE = 1e-4
PROMPT = hf.text_ids("Some words, some more words.")
STRATEGIES = ("ar", "speculative", "speculative:draft=3")


def model_for(seed: int = 3, shape: hf.Shape | None = None, ids: tuple[int, ...] = PROMPT) -> Any:
    """A tiny model with long patches and short ones in `ids`."""
    layers = hf.Stack(layers=2, kv_heads=1)
    return hf.build(hf.Case(shape or hf.Shape(k=3, encoder=layers, decoder=hf.Stack(layers=2)), seed, ids))


@pytest.fixture(scope="module")
def model() -> Any:
    return model_for()


@pytest.fixture(scope="module")
def fast(model: Any) -> Any:
    return bltkit.accelerate(model)


def peer(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    return model.generate(ids, use_cache=False, **options)


def tied(model: Any, ids: list[int], logits: torch.Tensor) -> bool:
    """May fp32 alone decide what follows these ids."""
    best = logits.topk(2).values
    entropy = hf.entropies(model, tuple(ids))[1:]
    close = len(entropy) > 0 and np.abs(entropy - model.config.patching_threshold).min() < TIE
    return bool(best[0] - best[1] < TIE) or bool(close) or hf.rounding_error(model, tuple(ids)) > TIE / 4


def check_greedy(case: hf.Case, count: int) -> int:
    """The ids of both; returns 1 where a tie decided."""
    model, ids = hf.build(case), torch.tensor([case.ids])
    fast = bltkit.accelerate(model)
    options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
    theirs = peer(model, ids, return_dict_in_generate=True, output_logits=True, **options)
    ties = 0
    for strategy in STRATEGIES[:2]:
        ours = fast.generate(ids, strategy=strategy, **options)[0].tolist()
        expected = theirs.sequences[0].tolist()
        if ours == expected:
            continue
        step = next(i for i in range(count) if ours[len(case.ids) + i] != expected[len(case.ids) + i])
        assert tied(model, expected[: len(case.ids) + step], theirs.logits[step][0]), (strategy, step)
        ties = 1
    return ties


@settings(max_examples=4, deadline=None)
@given(case=hf.cases())
def test_greedy_ids_are_those_of_transformers(case: hf.Case) -> None:
    check_greedy(case, 16)


@pytest.mark.slow
def test_greedy_ids_of_200_models() -> None:
    ties: list[int] = []

    @settings(max_examples=200, deadline=None, database=None)
    @given(case=hf.cases())
    def many(case: hf.Case) -> None:
        ties.append(check_greedy(case, 24))

    many()
    print(f"{len(ties)} models, {sum(ties)} with a tie")
    assert len(ties) >= 200
    assert sum(ties) <= len(ties) // 10


def test_encoder_cross_attention_in_all_of_several_layers_is_that_of_the_last() -> None:
    shape = hf.Shape(k=2, encoder=hf.Stack(layers=3), encoder_every_layer=True)
    assert check_greedy(hf.Case(shape, 5, PROMPT), 16) == 0


def test_a_row_may_begin_with_any_id() -> None:
    assert check_greedy(hf.Case(hf.Shape(k=2), 4, PROMPT[1:]), 16) == 0


SAMPLED = {
    "max_new_tokens": 24,
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 60,
    "top_p": 0.95,
    "min_p": 0.003,
    "repetition_penalty": 1.2,
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_samples(model: Any, fast: Any, strategy: str) -> None:
    """All filters of GenerationConfig mean what they mean there: scores agree, and so do the draws."""
    ids = torch.tensor([PROMPT])
    options: dict[str, Any] = {**SAMPLED, "num_return_sequences": 3, "eos_token_id": None}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    torch.manual_seed(7)
    theirs = peer(model, ids, **options)
    torch.manual_seed(7)
    ours = fast.generate(ids, strategy=strategy, **options)
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len({tuple(row) for row in ours.sequences.tolist()}) == 3
    assert type(ours) is type(theirs)
    for name in ("scores", "logits"):
        assert len(getattr(ours, name)) == 24
        for mine, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            torch.testing.assert_close(mine, other, atol=2e-5, rtol=2e-5)
    # The generator has gone on by as much, so that what is drawn after it is the same.
    after = [
        _after(lambda: peer(model, ids, **options)),
        _after(lambda: fast.generate(ids, strategy=strategy, **options)),
    ]
    assert torch.equal(*after)


def _after(run: Callable[[], Any]) -> torch.Tensor:
    torch.manual_seed(1)
    run()
    return torch.rand(3)


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_samples_have_the_distribution_of_their_scores(fast: Any, strategy: str) -> None:
    """A chi-squared test over pairs of ids: 4 x 4 outcomes from the scores that transformers' processors leave."""
    ids, rows = torch.tensor([PROMPT]), 800
    options: dict[str, Any] = {
        "max_new_tokens": 2,
        "do_sample": True,
        "temperature": 1.3,
        "top_k": 4,
        "eos_token_id": None,
    }
    options |= {"return_dict_in_generate": True, "output_scores": True}
    torch.manual_seed(11)
    output = fast.generate(ids, num_return_sequences=rows, strategy=strategy, **options)
    first, second = (scores.softmax(-1) for scores in output.scores)
    pairs = output.sequences[:, -2:].tolist()
    expected, counts = {}, {}
    for row, (a, b) in enumerate(pairs):
        counts[a, b] = counts.get((a, b), 0) + 1
        for other in second[row].nonzero()[:, 0].tolist():
            expected[a, other] = float(first[row, a] * second[row, other]) * rows
    assert abs(sum(expected.values()) / rows - 1) < 1e-5
    chi = sum((counts.get(pair, 0) - mean) ** 2 / mean for pair, mean in expected.items())
    assert len(expected) == 16
    assert chi < 37.7, chi  # 99.9 % of the chi-squared distribution of 15 degrees of freedom


TEXTS = ("Some words, some more words.", "aab", "", "A longer text, which needs no padding at all.")
PROCESSED = {"max_new_tokens": 14, "do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3}


def padded(left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [hf.text_ids(text) for text in TEXTS]
    width = max(map(len, rows)) + 2
    ids = [[0] * (width - len(row)) * left + list(row) + [0] * (width - len(row)) * (not left) for row in rows]
    batch = torch.tensor(ids)
    return batch, (batch != 0).long()


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_padded_row_is_continued_as_its_prompt_alone(model: Any, fast: Any, left: bool, strategy: str) -> None:
    ids, mask = padded(left)
    options: dict[str, Any] = {**PROCESSED, "eos_token_id": None}
    output = fast.generate(ids, attention_mask=mask, strategy=strategy, **options)
    assert output[:, : ids.shape[1]].tolist() == ids.tolist()
    for text, row in zip(TEXTS, output[:, ids.shape[1] :].tolist(), strict=True):
        alone = torch.tensor([hf.text_ids(text)])
        assert row == peer(model, alone, **options)[0, alone.shape[1] :].tolist(), text


def test_padding_is_known_by_the_padding_id_without_a_mask(fast: Any) -> None:
    ids, mask = padded(True)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(fast.generate(ids, **options), fast.generate(ids, attention_mask=mask, **options))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_row_ends_at_its_own_eos(model: Any, fast: Any, strategy: str) -> None:
    ids, mask = padded(True)
    free = fast.generate(ids, attention_mask=mask, max_new_tokens=14, do_sample=False, eos_token_id=None)
    eos = [int(free[0, ids.shape[1] + 2]), int(free[1, ids.shape[1] + 6])]
    options: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    output = fast.generate(
        ids, attention_mask=mask, strategy=strategy, return_dict_in_generate=True, output_scores=True, **options
    )
    lengths = set()
    for row, text in enumerate(TEXTS):
        alone = torch.tensor([hf.text_ids(text)])
        expected = peer(model, alone, **options)[0, alone.shape[1] :].tolist()
        lengths.add(len(expected))
        mine = output.sequences[row, ids.shape[1] :].tolist()
        assert mine[: len(expected)] == expected
        assert not any(mine[len(expected) :])
        for step in range(len(expected), len(mine)):  # padding is certain
            assert output.scores[step][row].softmax(-1)[0] == 1
    assert len(lengths) > 1
    assert len(output.scores) == output.sequences.shape[1] - ids.shape[1] == max(lengths)


class Recorder:
    """A streamer and a criterion that write down how they are called."""

    def __init__(self, stop_at: int) -> None:
        self.calls: list[Any] = []
        self.stop_at = stop_at

    def put(self, value: torch.Tensor) -> None:
        self.calls.append(("put", value.tolist()))

    def end(self) -> None:
        self.calls.append("end")

    def __call__(self, ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        self.calls.append(("criterion", ids.tolist(), None if scores is None else len(scores), options))
        return torch.full((len(ids),), ids.shape[1] >= self.stop_at)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("as_dict", [True, False])
def test_streamers_and_criteria_are_called_as_transformers_calls_them(
    model: Any, fast: Any, strategy: str, as_dict: bool
) -> None:
    from transformers import StoppingCriteriaList

    ids, stop_at = torch.tensor([PROMPT]), len(PROMPT) + 9
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    options |= {"return_dict_in_generate": as_dict, "output_scores": as_dict}
    recorders = []
    for run in (lambda **more: peer(model, ids, **more), lambda **more: fast.generate(ids, strategy=strategy, **more)):
        recorder = Recorder(stop_at)
        run(streamer=recorder, stopping_criteria=StoppingCriteriaList([recorder]), **options)
        recorders.append(recorder.calls)
    assert recorders[0] == recorders[1]
    assert len(recorders[0]) == 1 + 2 * 9 + 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_processor_of_the_caller_sees_the_ids_and_the_scores(model: Any, fast: Any, strategy: str) -> None:
    ids = torch.tensor([PROMPT])

    def ban_last(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.scatter(1, input_ids[:, -1:], -torch.inf)

    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False, "logits_processor": [ban_last]}
    output = fast.generate(ids, strategy=strategy, **options)
    assert torch.equal(output, peer(model, ids, **options))
    assert all(a != b for a, b in zip(output[0, -21:-1].tolist(), output[0, -20:].tolist(), strict=True))


def test_the_generation_config_of_model_and_call_count(model: Any, fast: Any) -> None:
    from transformers import GenerationConfig

    ids = torch.tensor([PROMPT])
    config = GenerationConfig(max_new_tokens=7, do_sample=False, eos_token_id=None, suppress_tokens=[4, 5])
    assert torch.equal(fast.generate(ids, config), peer(model, ids, generation_config=config))
    assert fast.generate(input_ids=ids, max_length=len(PROMPT) + 3, do_sample=False).shape[1] == len(PROMPT) + 3
    assert fast.generate(max_new_tokens=3, do_sample=False).shape == (1, 4)  # from BOS, as in transformers


# Weights


def storages(*modules: Any) -> dict[int, int]:
    """Memory of all parameters: address to bytes."""
    memory = {}
    for module in modules:
        for weight in module.parameters():
            memory[weight.untyped_storage().data_ptr()] = weight.untyped_storage().nbytes()
    return memory


def test_no_weight_is_held_twice() -> None:
    model = model_for()
    before = sum(storages(model).values())
    fast = bltkit.accelerate(model)
    engine = fast._engine
    assert sum(storages(model, engine.model, engine.scorer).values()) == before
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    count = sum(p.numel() for module in (engine.model, engine.scorer) for p in module.parameters())
    assert count == sum(p.numel() for p in model.parameters())


MEMORY = """
import sys, torch
from tests import hf
from pathlib import Path
import bltkit
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if "VmRSS" in line).split()[1]) / 1024
wide = hf.Stack(width=512, layers=6, heads=8, kv_heads=8, ffn=1536)
model = hf.model_of(hf.Shape(latent=wide, hash_vocab=20000), 0)
size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
ids = torch.tensor([hf.text_ids("warm")])
model.generate(ids, max_new_tokens=2, do_sample=False, use_cache=False)
before = resident()
fast = bltkit.accelerate(model)
fast.generate(ids, max_new_tokens=8, do_sample=False)
print(size, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_process_does_not_grow_by_the_model() -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    size, growth = map(float, run.stdout.split())
    print(f"model of {size:.0f} MB, {growth:.0f} MB more")
    assert size > 60
    assert growth < size / 3


@pytest.mark.parametrize("backend", ["eager", "native"])
def test_what_training_changes_is_seen(backend: str) -> None:
    if backend == "native":
        needs_library()
    model, ids = model_for(), torch.tensor([PROMPT, PROMPT])
    fast = bltkit.accelerate(model, backend=backend)
    before = fast.generate(ids[:1], max_new_tokens=16, do_sample=False)
    optimizer = torch.optim.AdamW(fast.parameters(), lr=3e-2)
    losses = []
    for _ in range(4):
        loss = fast(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    after = fast.generate(ids[:1], max_new_tokens=16, do_sample=False)
    assert losses[-1] < losses[0]
    assert torch.equal(after, peer(model, ids[:1], max_new_tokens=16, do_sample=False))
    assert not torch.equal(before, after)
    fast.lm_head.weight.data.mul_(-1)  # leaves no trace in the version of a tensor
    mirrored = fast.generate(ids[:1], max_new_tokens=16, do_sample=False)
    assert torch.equal(mirrored, peer(model, ids[:1], max_new_tokens=16, do_sample=False))
    assert not torch.equal(mirrored, after)


def test_another_dtype_new_tensors_and_another_threshold_are_followed() -> None:
    model, ids = model_for(), torch.tensor([PROMPT])
    fast, options = bltkit.accelerate(model), {"max_new_tokens": 12, "do_sample": False}
    model.to(torch.bfloat16)
    half = fast.generate(ids, **options)
    assert fast._engine.model.latent.stack.layers[0].attention.qkv.weight.dtype == torch.bfloat16
    expected = bltkit.accelerate(copy.deepcopy(model)).generate(ids, **options)
    assert torch.equal(half, expected)
    model.to(torch.float32)
    other = model_for(seed=9)
    model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(fast.generate(ids, **options), peer(model, ids, **options))
    model.config.patching_threshold = 0.0
    assert torch.equal(fast.generate(ids, **options), peer(model, ids, **options))
    assert sum(storages(model, fast._engine.model, fast._engine.scorer).values()) == sum(storages(model).values())


def test_float64_is_that_of_our_own_model(tmp_path: Path) -> None:
    """transformers' forward pass gives no numbers in float64, so ours is the reference."""
    model = model_for()
    hf.save(model, tmp_path)
    lm = bltkit.load(tmp_path, dtype=torch.float64)
    text, ids = "Some words, some more words.", torch.tensor([PROMPT])
    output = bltkit.accelerate(model.double()).generate(
        ids, max_new_tokens=20, do_sample=False, eos_token_id=None, suppress_tokens=[0, 1, 2, 3]
    )
    assert (
        bytes(value - 4 for value in output[0, len(PROMPT) :].tolist())
        == lm.generate(text, max_bytes=20, temperature=0, logit_bias={2: -100.0}).data
    )


def test_saving_copies_and_pickles(model: Any, fast: Any, tmp_path: Path) -> None:
    import safetensors.torch

    ids, options = torch.tensor([PROMPT]), {"max_new_tokens": 8, "do_sample": False}
    expected = fast.generate(ids, **options)
    hf._no_progress_bars()
    fast.save_pretrained(tmp_path / "saved")
    safetensors.torch.save_file(fast.state_dict(), tmp_path / "state.safetensors")
    torch.save(fast.state_dict(), tmp_path / "state.pt")
    for state in (
        hf.load(tmp_path / "saved").state_dict(),
        safetensors.torch.load_file(tmp_path / "state.safetensors"),
        torch.load(tmp_path / "state.pt", weights_only=True),
    ):
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(again.generate(ids, **options), expected)
        assert not set(storages(again)) & set(storages(model))


def test_model_keeps_its_own_generate_and_accelerating_twice_is_once(model: Any, fast: Any) -> None:
    import transformers

    assert type(model) is transformers.BltForCausalLM
    assert isinstance(fast, transformers.BltForCausalLM)
    assert type(fast).__name__ == "BltForCausalLM"
    assert bltkit.accelerate(fast) is fast
    assert type(model).generate is not type(fast).generate


def test_transformers_is_not_imported_by_bltkit() -> None:
    code = "import sys, bltkit; bltkit.load('bltkit:tiny'); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Elsewhere


def tokenizer_in(directory: Path) -> Any:
    from transformers import AutoTokenizer

    bltkit.load("bltkit:tiny").with_patching("stride:k=6").save(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_pipeline(model: Any, tmp_path: Path) -> None:
    import transformers

    tokenizer, fast = tokenizer_in(tmp_path / "tiny"), bltkit.accelerate(model, strategy="speculative")
    pipe = transformers.pipeline("text-generation", model=fast, tokenizer=tokenizer)
    texts = ["Some words, some more words.", "Some words"]
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "return_full_text": False}
    results = pipe(texts, batch_size=2, **options)
    for text, result in zip(texts, results, strict=True):
        ids = torch.tensor([hf.text_ids(text)])
        expected = peer(model, ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert result[0]["generated_text"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_model_of_the_harness(model: Any, tmp_path: Path) -> None:
    """lm-evaluation-harness' `hf` type writes with it, and scores with the forward pass."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer, contexts = tokenizer_in(tmp_path / "tiny"), ["Some words, some more words.", "Some words"]
    pairs = [Instance("loglikelihood", {}, (text, " and more"), i) for i, text in enumerate(contexts)]
    fast, theirs = (
        HFLM(pretrained=side, tokenizer=tokenizer, batch_size=1, max_length=256, device="cpu")
        for side in (bltkit.accelerate(model), model)
    )
    assert fast.loglikelihood(pairs) == theirs.loglikelihood(pairs)
    until = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    written = fast.generate_until([Instance("generate_until", {}, (text, until), i) for i, text in enumerate(contexts)])
    for text, mine in zip(contexts, written, strict=True):
        ids = torch.tensor([hf.text_ids(text)])
        alone = peer(model, ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert mine == tokenizer.decode(alone, skip_special_tokens=True).split("\n\n")[0]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams = 2"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beams = 4"),
        ({"assistant_model": object()}, "assistant_model"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens = 3"),
        ({"constraints": [object()]}, "constraints"),
        ({"force_words_ids": [[5]]}, "force_words_ids"),
        ({"guidance_scale": 1.5}, "guidance_scale = 1.5"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha = 0.6"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"past_key_values": object()}, "past_key_values"),
        ({"inputs_embeds": torch.zeros(1, 2, 16)}, "inputs_embeds"),
        ({"custom_generate": "somewhere"}, "custom_generate"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"negative_prompt_ids": torch.ones(1, 2)}, "negative_prompt_ids"),
        ({"max_bytes": 4}, "max_bytes"),
        ({"strategy": "diffusion"}, "strategy = 'diffusion'"),
        ({"strategy": "fast"}, "no strategy 'fast'"),
        ({"backend": "compiled"}, "backend = 'compiled'"),
        ({"strategy": "speculative", "prefix_allowed_tokens_fn": lambda *_: [5]}, "prefix_allowed_tokens_fn"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask has shape"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fast: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        fast.generate(torch.tensor([PROMPT]), max_new_tokens=2, **options)
    assert "\n" not in str(refused.value)


def test_a_field_of_a_generation_config_is_refused_as_well(fast: Any) -> None:
    from transformers import GenerationConfig

    with pytest.raises(ValueError, match="num_beams = 3"):
        fast.generate(torch.tensor([PROMPT]), generation_config=GenerationConfig(num_beams=3))


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1, 300]], None, "input_ids run from 1 to 300"),
        ([[1, -1]], None, "input_ids run from -1"),
        ([[1, 5, 6, 7]], [[1, 0, 1, 1]], "row 0 has a gap"),
        ([[1, 5], [0, 0]], [[1, 1], [0, 0]], "row 1 is empty"),
    ],
)
def test_ids_that_are_no_prompts_are_refused(fast: Any, ids: Any, mask: Any, message: str) -> None:
    options = {} if mask is None else {"attention_mask": torch.tensor(mask)}
    with pytest.raises(ValueError, match=message):
        fast.generate(torch.tensor(ids), max_new_tokens=2, **options)


def broken_models() -> list[tuple[str, Callable[[], Any], str]]:
    def with_config(**fields: Any) -> Callable[[], Any]:
        def make() -> Any:
            model = model_for()
            for name, value in fields.items():
                setattr(model.config, name, value)
            return model

        return make

    def meta() -> Any:
        return model_for().to("meta")

    def other_class() -> Any:
        return torch.nn.Linear(2, 2)

    def bare() -> Any:
        return model_for().model

    def wrapped_linear() -> Any:
        model = model_for()
        model.model.global_transformer.layers[0].self_attn.q_proj = torch.nn.utils.parametrizations.weight_norm(
            model.model.global_transformer.layers[0].self_attn.q_proj
        )
        return model

    def integer_weights() -> Any:
        model = model_for()
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to(torch.int8), requires_grad=False)
        return model

    return [
        ("threshold", with_config(patching_threshold=None), "patching_threshold is null"),
        ("mode", with_config(patching_mode="space"), "patching_mode"),
        ("patcher", with_config(patch_in_forward=False), "patch_in_forward is false"),
        ("maximum", with_config(max_patch_length=6), "max_patch_length is 6"),
        ("quantised", with_config(quantization_config={"quant_method": "x"}), "quantised"),
        ("meta", meta, "meta device"),
        ("class", other_class, "expected a BltForCausalLM"),
        ("no head", bare, "expected a BltForCausalLM"),
        ("path", lambda: "some/where", "BltForCausalLM.from_pretrained"),
        ("parametrised", wrapped_linear, "merge adapters"),
        ("integers", integer_weights, "floating-point"),
    ]


@pytest.mark.parametrize(("make", "message"), [pytest.param(*rest, id=name) for name, *rest in broken_models()])
def test_models_that_cannot_be_accelerated_are_refused_in_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        bltkit.accelerate(make())
    assert "\n" not in str(refused.value)


def test_adapters_are_refused_until_they_are_merged() -> None:
    peft = pytest.importorskip("peft")
    model, ids = model_for(), torch.tensor([PROMPT])
    fast = bltkit.accelerate(model)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match="merge_and_unload"):
        fast.generate(ids, **options)
    merged = adapted.merge_and_unload()
    assert torch.equal(fast.generate(ids, **options), peer(merged, ids, **options))
