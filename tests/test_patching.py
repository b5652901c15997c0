"""Patching rules: the worked examples, and the contract that every rule of the registry must hold."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bltkit.config import Config, parse
from bltkit.patching import RULES, BpeOracleRule, PatchingRule, Rule, extend, parse_rule, patch, start_stream
from bltkit.tokens import ByteTokenizer, train_bpe
from bltkit.vocab import BOS, EOS, OFFSET, encode
from tests import reference_patching as reference
from tests.shared import SHARED

STREAMING = [kind for kind, rule in RULES.items() if rule.streams]
WITH_LOOPS = [kind for kind in STREAMING if kind in reference.RULES]
"""Rules with a second, obvious implementation; the others are held to the rest of the contract."""
ENTROPIES = [3.0, 0.5, 2.0, 2.0, 0.1, 1.6, 1.7, 1.0, 1.5, 2.6]
DOCUMENTS = [
    b"the cat sat on the mat, the other cat did not",
    "Smørrebrød på fad, 日本語の文".encode(),
    b"x\n\n  y = 1",
]


def starts_of(rule: PatchingRule, ids: Tensor, scores: Tensor | None = None, **options: Any) -> list[list[int]]:
    starts = patch(rule, ids, scores, **options).starts
    return [row.nonzero()[:, 0].tolist() for row in starts]


def examples(kind: str) -> list[PatchingRule]:
    """Every combination of the values that the rule's fields carry as examples."""
    fields = {name: field for name, field in RULES[kind].model_fields.items() if name != "kind"}
    for name, field in fields.items():
        assert field.examples or not field.is_required(), f"{kind}.{name}: say Field(examples=[...]) for these tests"
    values = [field.examples or [field.get_default()] for field in fields.values()]
    return [RULES[kind](**dict(zip(fields, row, strict=True))) for row in itertools.product(*values)]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> BpeOracleRule:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    path.write_text(train_bpe(DOCUMENTS * 3, 320), encoding="utf-8")
    return BpeOracleRule(tokenizer=str(path))


# Worked examples.


@pytest.mark.parametrize(
    ("rule", "starts"),
    [
        ("threshold:threshold=1.5", [0, 1, 3, 4, 6, 7, 10]),
        ("rise:rise=0.05", [0, 1, 2, 3, 6, 7, 9, 10]),
        ("both:threshold=1.2,rise=0.05,skip_third=true", [0, 1, 2, 6, 7, 9, 10]),
        ("both:threshold=1.2,rise=0.05", [0, 1, 2, 3, 6, 7, 9, 10]),
        ("threshold:threshold=9", [0, 1]),
        ("threshold:threshold=1.5,max_patch_bytes=2", [0, 1, 3, 4, 6, 7, 9, 10]),
    ],
)
def test_the_worked_example(rule: str, starts: list[int]) -> None:
    ids = torch.tensor([[BOS, *range(50, 59)]])
    patches = patch(parse_rule(rule), ids, torch.tensor([ENTROPIES]))
    assert patches.starts[0].nonzero()[:, 0].tolist() == starts
    own = [s for s in starts if s < 10]
    lengths = [end - begin for begin, end in zip(own, [*own[1:], 10], strict=True)]
    assert patches.lengths.tolist() == [lengths]


def test_space_ends_a_patch_after_the_first_of_a_run() -> None:
    ids = encode("Hi,  a b-c 12éx.", eos=True)[None]
    assert starts_of(parse_rule("space"), ids) == [[0, 1, 4, 8, 10, 12, 15, 18, 19]]


def test_stride_of_a_half_integer_alternates() -> None:
    ids = encode(b"x" * 19)[None]
    assert starts_of(parse_rule("stride:k=4.5"), ids) == [[0, 1, 5, 10, 14, 19]]


def test_every_documents_bos_and_first_byte_open_a_patch() -> None:
    ids = torch.cat([encode(b"abcd", eos=True), encode(b"efgh", eos=True)])[None]
    far = parse_rule("stride:k=4")
    assert starts_of(far, ids) == [[0, 1, 5, 6, 7, 11]]
    assert starts_of(far, ids, documents=False) == [[0, 1, 5, 9]]


@pytest.mark.skipif(SHARED is None, reason="needs the shared golden files")
def test_the_golden_entropies_give_the_golden_alignment() -> None:
    assert SHARED is not None
    case = np.load(SHARED / "golden" / "case_a_entropy.npz")
    threshold = json.loads((SHARED / "golden" / "golden.json").read_text())["k2"]["threshold"]
    ids = torch.from_numpy(case["input_ids"])[None]
    entropies = torch.from_numpy(case["entropies"])[None]
    patches = patch(RULES["threshold"](threshold=threshold), ids, entropies, documents=False)
    assert patches.byte_patch[0].tolist() == case["enc_patch_ids"].tolist()
    assert patches.byte_latent[0].tolist() == case["dec_patch_ids"].tolist()


# The contract of every rule.

SCORES = [
    0.0,
    0.25,
    0.375,
    0.5,
    0.625,
    1.25,
    1.5,
    2.0,
]  # exact in fp32 and full of ties with the rules' fields
IDS = [BOS, EOS, *(OFFSET + byte for byte in b"aZ09 ,\n@[`{/:"), *(OFFSET + byte for byte in b"\x7f\x80\xbf\xc0")]


class Rows(Config, arbitrary_types_allowed=True):
    """B rows of T ids; row b counts num_bytes[b] of them."""

    ids: Tensor
    scores: Tensor
    num_bytes: Tensor
    documents: bool


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    length = draw(st.integers(1, 24))
    batch = draw(st.integers(1, 3))

    def table(values: list[Any]) -> Tensor:
        row = st.lists(st.sampled_from(values), min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))

    num_bytes = draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
    return Rows(ids=table(IDS), scores=table(SCORES), num_bytes=torch.tensor(num_bytes), documents=draw(st.booleans()))


def reference_starts(rule: PatchingRule, row: Rows) -> Tensor:
    """[B, T+1] by the loops."""
    starts = torch.zeros(row.ids.shape[0], row.ids.shape[1] + 1, dtype=torch.bool)
    for b, n in enumerate(row.num_bytes.tolist()):
        ids, scores = row.ids[b, :n].tolist(), row.scores[b, :n].tolist()
        expected = reference.row_starts(rule.model_dump(), ids, scores, documents=row.documents)
        starts[b, : n + 1] = torch.tensor(expected)
    return starts


def test_the_loops_are_of_registered_rules() -> None:
    assert set(reference.RULES) <= set(STREAMING)


@pytest.mark.parametrize("kind", STREAMING)
@given(data=st.data(), row=rows())
def test_a_rule_does_what_every_rule_does(kind: str, data: st.DataObject, row: Rows) -> None:
    """BOS and the byte after it open patches, no patch is longer than allowed, and asking again changes nothing."""
    rule = data.draw(st.sampled_from(examples(kind)))
    ids, scores = row.ids.clone(), row.scores.clone()
    patches = patch(rule, row.ids, row.scores, row.num_bytes, documents=row.documents)
    assert row.ids.equal(ids) and row.scores.equal(scores)
    assert patches.starts.equal(patch(rule, row.ids, row.scores, row.num_bytes, documents=row.documents).starts)
    assert patches.starts[:, :2].all()
    if rule.max_patch_bytes is not None:
        assert int(patches.lengths.max()) <= rule.max_patch_bytes
    elif not row.documents:  # of one document, the rule's own answers are nested in those of any limit
        limited = patch(rule.replace(max_patch_bytes=2), row.ids, row.scores, row.num_bytes, documents=False)
        assert not (patches.starts & ~limited.starts).any()


@pytest.mark.parametrize("kind", WITH_LOOPS)
@given(data=st.data(), row=rows())
def test_a_rule_equals_the_loops(kind: str, data: st.DataObject, row: Rows) -> None:
    rule = data.draw(st.sampled_from(examples(kind)))
    patches = patch(rule, row.ids, row.scores, row.num_bytes, documents=row.documents)
    assert patches.starts.tolist() == reference_starts(rule, row).tolist()


@pytest.mark.parametrize("kind", STREAMING)
@given(data=st.data(), row=rows())
def test_streaming_gives_what_the_batch_gives(kind: str, data: st.DataObject, row: Rows) -> None:
    rule = data.draw(st.sampled_from(examples(kind)))
    length = row.ids.shape[1]
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    stream = start_stream(rule, len(row.ids), documents=row.documents)
    answers = []
    for begin, end in itertools.pairwise([0, *cuts, length]):
        opens, stream = extend(rule, stream, row.ids[:, begin:end], row.scores[:, begin:end])
        answers.append(opens)
    opened = torch.cat(answers, 1)
    starts = patch(rule, row.ids, row.scores, documents=row.documents).starts
    if row.documents:  # an answer cannot know that the next id is a BOS
        opened[:, :-1] |= row.ids[:, 1:] == BOS
    assert starts[:, 1:].tolist() == opened.tolist()


@pytest.mark.parametrize("kind", STREAMING)
@given(data=st.data(), row=rows())
def test_rows_of_a_stream_may_grow_unevenly(kind: str, data: st.DataObject, row: Rows) -> None:
    rule = data.draw(st.sampled_from(examples(kind)))
    first = [data.draw(st.integers(0, n)) for n in row.num_bytes.tolist()]
    stream = start_stream(rule, len(row.ids), documents=row.documents)
    before, stream = extend(rule, stream, row.ids, row.scores, torch.tensor(first))
    rest, _ = extend(rule, stream, *(shifted(table, first) for table in (row.ids, row.scores)))
    for b, (begin, end) in enumerate(zip(first, row.num_bytes.tolist(), strict=True)):
        alone = start_stream(rule, documents=row.documents)
        expected, _ = extend(rule, alone, row.ids[b : b + 1, :end], row.scores[b : b + 1, :end])
        assert before[b, :begin].tolist() + rest[b, : end - begin].tolist() == expected[0].tolist()
        assert not before[b, begin:].any()


def shifted(table: Tensor, by: list[int]) -> Tensor:
    return torch.stack([row.roll(-n) for row, n in zip(table, by, strict=True)])


@pytest.mark.parametrize("kind", STREAMING)
@given(data=st.data(), row=rows())
def test_a_prefix_has_the_prefix_of_the_starts(kind: str, data: st.DataObject, row: Rows) -> None:
    rule = data.draw(st.sampled_from(examples(kind)))
    n = data.draw(st.integers(1, row.ids.shape[1]))
    whole = patch(rule, row.ids, row.scores, documents=row.documents).starts
    part = patch(rule, row.ids[:, :n], row.scores[:, :n], documents=row.documents).starts
    assert part[:, :n].tolist() == whole[:, :n].tolist()
    # The next byte's answer is a start of the whole row, where the next byte is no BOS that forces one.
    assert not (part[:, n] & ~whole[:, n]).any()


@pytest.mark.parametrize("kind", list(RULES))
@given(data=st.data(), row=rows())
def test_neighbours_and_padding_change_nothing(kind: str, oracle: Any, data: st.DataObject, row: Rows) -> None:
    rule = oracle if kind == "bpe-oracle" else data.draw(st.sampled_from(examples(kind)))
    together = patch(rule, row.ids, row.scores, row.num_bytes, documents=row.documents).starts
    for b, n in enumerate(row.num_bytes.tolist()):
        alone = patch(rule, row.ids[b : b + 1, :n], row.scores[b : b + 1, :n], documents=row.documents).starts
        assert together[b, : n + 1].tolist() == alone[0].tolist()
        assert not together[b, n + 1 :].any()


@given(row=rows())
def test_scores_of_padding_may_be_anything(row: Rows) -> None:
    rule = parse_rule("both:threshold=0.5,rise=0.125,max_patch_bytes=3")
    behind = torch.arange(row.ids.shape[1]) >= row.num_bytes[:, None]
    starts = patch(rule, row.ids, row.scores, row.num_bytes).starts
    spoiled = patch(rule, row.ids, row.scores.masked_fill(behind, torch.nan), row.num_bytes).starts
    assert starts.tolist() == spoiled.tolist()


@pytest.mark.parametrize("kind", STREAMING)
def test_nothing_given_is_changed(kind: str) -> None:
    ids, scores, num_bytes = encode(b"a b c")[None], torch.ones(1, 6), torch.tensor([4])
    for rule in examples(kind):
        stream = start_stream(rule)
        before = (stream.position.clone(), stream.open_bytes.clone(), stream.ids.clone())
        patch(rule, ids, scores, num_bytes)
        once, _ = extend(rule, stream, ids, scores)
        again, _ = extend(rule, stream, ids, scores)
        assert once.tolist() == again.tolist()
        assert all(map(torch.equal, before, (stream.position, stream.open_bytes, stream.ids)))
    assert ids.tolist() == [[BOS, *(OFFSET + byte for byte in b"a b c")]]
    assert scores.tolist() == [[1.0] * 6]
    assert num_bytes.tolist() == [4]


# What a user can get wrong.


@pytest.mark.parametrize("kind", [kind for kind, rule in RULES.items() if rule.scores])
def test_missing_scores_are_named(kind: str) -> None:
    rule = examples(kind)[0]
    with pytest.raises(ValueError, match=f"'{kind}' reads the {rule.scores} score .* scores is None"):
        patch(rule, encode(b"abc")[None])
    with pytest.raises(ValueError, match="scores is None"):
        extend(rule, start_stream(rule), encode(b"abc")[None])


@pytest.mark.parametrize("kind", STREAMING)
def test_a_rule_as_text_reads_back(kind: str) -> None:
    for rule in examples(kind):
        assert parse_rule(str(rule)) == rule
        assert parse_rule(rule.model_dump()) == rule
        assert parse(Rule, rule.model_dump(mode="json"), "rule") == rule


def test_the_text_of_a_rule_leaves_defaults_out() -> None:
    assert str(parse_rule("stride: k = 6, max_patch_bytes=8")) == "stride:k=6.0,max_patch_bytes=8"
    assert str(parse_rule("both:rise=.5,threshold=1,skip_third=true")) == "both:threshold=1.0,rise=0.5,skip_third=true"
    assert str(parse_rule("byte")) == "byte"
    assert str(parse_rule("bpe-oracle:tokenizer=some/tokenizer.json")) == "bpe-oracle:tokenizer=some/tokenizer.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("strid:k=3", "unknown rule 'strid'; did you mean 'stride'\\? rules: threshold, rise, both, stride"),
        ("quux", "unknown rule 'quux'; rules: threshold, rise"),
        ("", "unknown rule ''"),
        ("threshold:treshold=3", "rule 'threshold' has no field 'treshold'; did you mean 'threshold'"),
        ("byte:k=3", "rule 'byte' has no field 'k'; known: max_patch_bytes"),
        ("stride", "key 'k' is missing"),
        ("stride:k", "'k' in 'stride:k' is not field=value"),
        ("stride:k=", "'k=' in 'stride:k=' is not field=value"),
        ("stride:k=3,k=4", "'k' is given twice"),
        ("stride:k=0.5", "k = 0.5: .* greater than or equal to 1"),
        ("stride:k=inf", "k = inf: .* finite"),
        ("stride:k=many", "k = 'many'"),
        ("byte:max_patch_bytes=0", "max_patch_bytes = 0"),
    ],
)
def test_a_bad_rule_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"--rule: {message}") as caught:
        parse_rule(text, where="--rule")
    assert "\n" not in str(caught.value)


# Real token borders.


def reference_ends(tokenizer: ByteTokenizer, data: bytes) -> list[int]:
    """Where tokens end, by slow merging; `data` is valid UTF-8."""
    table = json.loads(tokenizer.tokenizer.to_str())
    words = [word for word, _ in tokenizer.tokenizer.pre_tokenizer.pre_tokenize_str(data.decode())]
    return list(itertools.accumulate(reference.bpe_lengths(table, words)))


@given(text=st.text(alphabet="the cat,sonmi å日本語の文ø\n1=y", min_size=1, max_size=40))
def test_the_oracle_marks_the_tokens_ends(oracle: BpeOracleRule, text: str) -> None:
    ends = reference_ends(oracle.loaded, text.encode())
    assert starts_of(oracle, encode(text)[None]) == [[0, 1, *(end + 1 for end in ends)]]


@given(pieces=st.lists(st.one_of(st.sampled_from(DOCUMENTS), st.binary(max_size=6)), max_size=5))
def test_tokens_are_lossless_for_any_bytes(oracle: BpeOracleRule, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    tokens = oracle.loaded.encode(data)
    assert oracle.loaded.decode(tokens) == data
    ends = itertools.accumulate(len(oracle.loaded.pieces[token]) for token in tokens)
    ids = encode(data, eos=True)[None]
    assert starts_of(oracle, ids) == [[0, 1, *(end + 1 for end in ends), ids.shape[1]]]


def test_the_oracle_merges_valid_text_beside_stray_bytes(oracle: BpeOracleRule) -> None:
    # "the" is one token in the training text; each byte that is no UTF-8 stands alone.
    assert starts_of(oracle, encode(b"\xff\xfethe\xc3")[None]) == [[0, 1, 2, 3, 6, 7]]


def test_the_oracle_treats_every_document_alike(oracle: BpeOracleRule) -> None:
    one = encode(DOCUMENTS[0], eos=True)
    starts = patch(oracle, torch.cat([one, one])[None]).starts[0, :-1].reshape(2, -1)
    assert starts[0].tolist() == starts[1].tolist()
    assert 0 < int(starts[0].sum()) < len(one) - 10


def test_the_oracle_cuts_long_tokens(oracle: BpeOracleRule) -> None:
    rule = oracle.replace(max_patch_bytes=2)
    assert starts_of(rule, encode(b"the")[None]) == [[0, 1, 3, 4]]


def test_the_oracle_refuses_to_stream_and_says_why(oracle: BpeOracleRule) -> None:
    with pytest.raises(ValueError, match=r"cannot stream: .*depends on that byte.*'bpe' and a boundary model"):
        start_stream(oracle)
    with pytest.raises(ValueError, match="cannot stream"):
        extend(oracle, start_stream(parse_rule("byte")), encode(b"a")[None])


def test_training_a_tokenizer_is_deterministic_and_sized() -> None:
    text = train_bpe(iter(DOCUMENTS), 300, special_tokens=["<s>", "</s>"])
    assert text == train_bpe(iter(DOCUMENTS), 300, special_tokens=["<s>", "</s>"])
    tokenizer = ByteTokenizer.from_json(text)
    assert len(tokenizer.pieces) == 300
    assert tokenizer.pieces[0] == b"<s>"
    assert len(tokenizer.encode(DOCUMENTS[0])) < len(DOCUMENTS[0])
    # Bytes are data: a special token's text in a document is text.
    assert 0 not in tokenizer.encode(b"a <s> b")
    with pytest.raises(ValueError, match=r"vocab_size = 100: .* need 256"):
        train_bpe(DOCUMENTS, 100)


def test_a_tokenizer_that_cannot_give_byte_borders_is_refused(tmp_path: Path) -> None:
    text = train_bpe(DOCUMENTS, 260)
    prefix, normal, gap = (json.loads(text) for _ in range(3))
    prefix["pre_tokenizer"]["add_prefix_space"] = True
    with pytest.raises(ValueError, match="changes the text"):
        ByteTokenizer.from_json(json.dumps(prefix)).encode(b"abc")
    normal["normalizer"] = {"type": "Lowercase"}
    with pytest.raises(ValueError, match="changes the text"):
        ByteTokenizer.from_json(json.dumps(normal)).encode(b"ABC")
    del gap["model"]["vocab"]["A"]
    with pytest.raises(ValueError, match="1 of the 256 bytes have no token"):
        ByteTokenizer.from_json(json.dumps(gap))
    gap["model"]["vocab"]["▁"] = 999
    with pytest.raises(ValueError, match="'▁', which stands for no byte"):
        ByteTokenizer.from_json(json.dumps(gap))
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        BpeOracleRule(tokenizer=str(broken)).loaded  # noqa: B018
    with pytest.raises(ValueError, match="no such file"):
        patch(BpeOracleRule(tokenizer=str(tmp_path / "none")), encode(b"a")[None])
