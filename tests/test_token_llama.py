"""The token model: the logits of transformers' Llama from the same files, causal, and blind to other documents."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bltkit
from bltkit.checkpoint import TokenBundle, load_token_model, write_token_model
from bltkit.config import parse
from bltkit.cost.formulas.operations import forward_flops, token_flops
from bltkit.model import TokenConfig, TokenLlama
from bltkit.tokens import Vocabulary
from tests import tiny_training

VOCABULARY = Vocabulary.train(tiny_training.documents(), 300)


def model(config: TokenConfig, seed: int = 0) -> TokenLlama:
    """With weights so large that logits lie far apart."""
    made = TokenLlama(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.1 * noise if weight.ndim == 1 else 1.2 * noise / weight.shape[1] ** 0.5)
    return made


@st.composite
def configs(draw: st.DrawFn) -> TokenConfig:
    heads = draw(st.sampled_from([1, 2, 4]))
    return TokenConfig(
        width=heads * draw(st.sampled_from([2, 4, 8])),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=draw(st.sampled_from([None, *(n for n in (1, 2, 4) if heads % n == 0)])),
        ffn_width=draw(st.sampled_from([None, 24])),
        rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
        norm_eps=draw(st.sampled_from([1e-5, 1e-3])),
        vocab_size=draw(st.sampled_from([300, 307])),
        tied=draw(st.booleans()),
    )


def ids_of(length: int, seed: int, vocab: int = 300) -> torch.Tensor:
    return torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(seed))


@given(configs(), st.integers(0, 99), st.sampled_from([1, 7, 40]))
@settings(max_examples=25, deadline=None)
def test_the_files_are_a_llama_with_our_logits(
    tmp_path_factory: pytest.TempPathFactory, config: TokenConfig, seed: int, length: int
) -> None:
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("llama")
    ours = model(config, seed)
    write_token_model(directory, TokenBundle(ours, VOCABULARY, {"steps": 1}))
    theirs: Any = transformers.LlamaForCausalLM.from_pretrained(directory)
    ids = ids_of(length, seed)
    with torch.no_grad():
        logits = ours(ids)
        # A random model of a few numbers a position may amplify rounding, ours and theirs alike: such say nothing.
        assume(float((copy.deepcopy(ours).double()(ids) - logits).abs().max()) < 4e-6)
        torch.testing.assert_close(logits, theirs(ids).logits, rtol=0, atol=1e-5)
    assert sum(weight.numel() for weight in ours.parameters()) == theirs.num_parameters()
    again = load_token_model(directory)
    tiny_training.same(dict(again.model.state_dict()), dict(ours.state_dict()))
    assert again.model.config == config and again.record == {"steps": 1} and again.vocabulary == VOCABULARY


def test_transformers_has_the_tokenizer_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = TokenConfig(width=8, layers=1, heads=2, vocab_size=300)
    write_token_model(tmp_path, TokenBundle(model(config), VOCABULARY))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the of and to  in\n\nis", "Grüße \N{SNOWMAN}", ""):
        assert theirs(text)["input_ids"] == [VOCABULARY.bos, *VOCABULARY.tokenizer.encode(text.encode())]
        assert theirs.decode(VOCABULARY.tokenizer.encode(text.encode())) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    written = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert written.generation_config.eos_token_id == VOCABULARY.eos


def test_nothing_before_a_token_depends_on_it() -> None:
    made, ids = model(TokenConfig(width=16, layers=2, heads=2, kv_heads=1, vocab_size=300)).double(), ids_of(20, 1)
    documents = (torch.arange(20) >= 8).long()[None] + 1
    with torch.no_grad():
        for given_documents in (None, documents):
            before = made(ids, given_documents)
            for at in (0, 7, 8, 19):
                changed = ids.clone()
                changed[0, at] = (changed[0, at] + 1) % 300
                after = made(changed, given_documents)
                assert torch.equal(before[:, :at], after[:, :at])
                assert not torch.allclose(before[:, at], after[:, at])
                if given_documents is not None and at < 8:
                    assert torch.equal(before[:, 8:], after[:, 8:])


def test_documents_of_a_row_do_not_see_one_another() -> None:
    """What a packed row gives is what each document gives alone; positions count for nothing but their differences."""
    config = TokenConfig(width=16, layers=2, heads=2, vocab_size=300)
    made, ids = model(config).double(), ids_of(30, 2)
    documents = torch.tensor([[1] * 11 + [2] * 4 + [3] * 15])
    with torch.no_grad():
        packed = made(ids, documents)
        for begin, end in ((0, 11), (11, 15), (15, 30)):
            torch.testing.assert_close(packed[:, begin:end], made(ids[:, begin:end]), rtol=0, atol=1e-10)
        free = model(config.replace(document_masks=False)).double()
        assert torch.equal(free(ids, documents), free(ids))
        assert not torch.allclose(free(ids), packed)


def test_a_row_does_not_depend_on_its_neighbours_or_on_padding() -> None:
    made, ids = model(TokenConfig(width=16, layers=2, heads=2, vocab_size=300)).double(), ids_of(12, 3)
    documents = torch.tensor([[1] * 5 + [2] * 7])
    padded = torch.cat([torch.cat([ids, torch.zeros(1, 6, dtype=torch.long)], 1), ids_of(18, 4)])
    rows = torch.cat([torch.cat([documents, torch.full((1, 6), 2)], 1), torch.ones(1, 18, dtype=torch.long)])
    with torch.no_grad():
        torch.testing.assert_close(made(padded, rows)[:1, :12], made(ids, documents), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tied", [False, True])
def test_operations_are_those_of_the_products(tied: bool) -> None:
    """Per byte of text: those of a token's row, divided by the token's bytes."""
    from torch.utils.flop_counter import FlopCounterMode

    config = TokenConfig(width=32, layers=2, heads=4, kv_heads=2, ffn_width=48, vocab_size=301, tied=tied)
    with torch.device("meta"):
        made, ids = TokenLlama(config), torch.zeros(1, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(ids)
    # The counter takes attention as if nothing were masked.
    masked = 4 * config.width * config.layers * 64 * (64 - 65 / 2)
    per_byte = sum(token_flops(config, 4.0, 256).values())
    assert per_byte * 256 == pytest.approx(counter.get_total_flops() - masked, rel=1e-3)
    assert forward_flops(config, 4.0, 256) == per_byte


def test_a_byte_model_is_not_made_of_it(tmp_path: Path) -> None:
    write_token_model(tmp_path, TokenBundle(model(TokenConfig(width=8, layers=1, heads=2, vocab_size=300)), VOCABULARY))
    with pytest.raises(ValueError, match=r"holds a token model .*`blt eval --model token:") as caught:
        bltkit.load(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text(Vocabulary.train(tiny_training.documents(), 299).text)
    with pytest.raises(ValueError, match="not the one that the model was trained with"):
        load_token_model(tmp_path)
    (tmp_path / "bltkit.json").unlink()
    with pytest.raises(ValueError, match="was not trained here"):
        load_token_model(tmp_path)


def test_shapes_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"window = 8: a Llama's attention has none"):
        parse(TokenConfig, {"width": 8, "layers": 1, "heads": 2, "window": 8}, "model")
    with pytest.raises(ValueError, match=r"unknown key 'tokenizer\.sample_byte'; did you mean 'sample_bytes'"):
        parse(
            TokenConfig, {"width": 8, "layers": 1, "heads": 2, "tokenizer": {"kind": "trained", "sample_byte": 1}}, "m"
        )
