"""The tree over texts that begin alike, and the walk along it, against every text alone."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bltkit.eval.subjects.shared_prefixes import ROOT, Tree, walk
from bltkit.generate import Session
from bltkit.vocab import BOS, OFFSET
from tests.rows import example, start
from tests.tiny import Case, cases

texts = st.lists(
    st.one_of(
        st.text("ab", max_size=12).map(str.encode),
        st.tuples(st.sampled_from([b"", b"aaaabbbb" * 3, b"aaaabbbb" * 2 + b"c"]), st.binary(max_size=4)).map(b"".join),
    ),
    max_size=12,
)


def path(tree: Tree, at: int) -> bytes:
    """The bytes from the root to a node, by its parents."""
    node = tree.nodes[at]
    return node.data if at == ROOT else path(tree, node.parent) + node.data


@given(texts, st.integers(1, 40))
def test_every_text_is_the_way_to_its_leaf(several: list[bytes], worthwhile: int) -> None:
    tree = Tree.of(several, worthwhile)
    assert [path(tree, leaf) for leaf in tree.leaves] == several
    for number, leaf in enumerate(tree.leaves):
        assert number in tree.nodes[leaf].ends
    for at, node in enumerate(tree.nodes):
        assert all(tree.nodes[child].parent == at and child > at for child in node.children)
        assert at == ROOT or node.size > 0
        assert node.children or node.ends or at == ROOT


@given(texts)
def test_with_nothing_too_short_no_byte_is_read_twice(several: list[bytes]) -> None:
    distinct = {text[:size] for text in several for size in range(1, len(text) + 1)}
    assert Tree.of(several, 1).num_bytes == len(distinct)


@given(texts, st.integers(1, 40))
def test_sharing_never_costs(several: list[bytes], worthwhile: int) -> None:
    assert Tree.of(several, worthwhile).num_bytes <= sum(map(len, set(several)))


def test_a_stretch_is_shared_where_that_saves_enough() -> None:
    several = [b"x" * 50 + bytes([end]) for end in range(4)]
    assert Tree.of(several, 150).num_bytes == 50 + 4
    assert Tree.of(several, 151).num_bytes == 4 * 51


def test_many_texts_of_which_each_begins_with_the_last_need_no_recursion() -> None:
    several = [b"a" * size for size in range(3000)]
    assert Tree.of(several, 1).num_bytes == 2999


@settings(max_examples=50)
@given(cases(), st.data())
def test_the_walk_gives_each_text_what_it_gets_alone(case: Case, data: st.DataObject) -> None:
    ids = [value for value in case.ids if value >= OFFSET]
    own = bytes(value - OFFSET for value in ids)
    several: Sequence[bytes] = data.draw(
        st.lists(st.integers(0, len(own)).map(lambda stop: own[:stop]), min_size=1, max_size=4)
    )
    ends = data.draw(st.lists(st.binary(max_size=3), min_size=len(several), max_size=len(several)))
    several = [text + end for text, end in zip(several, ends, strict=True)]
    tree = Tree.of(several, data.draw(st.integers(1, 30)))
    start = Session.start(case.model, case.scorer, case.rule).extend([BOS])
    visits = list(walk(tree, start, data.draw(st.integers(1, 40))))
    assert sorted(node for visit in visits for node in visit.nodes) == list(range(len(tree.nodes)))
    for visit in visits:
        for row, node in enumerate(visit.nodes):
            whole = [byte + OFFSET for byte in path(tree, node)]
            logits = case.run([BOS, *whole])[0]
            torch.testing.assert_close(visit.session.logits[row], logits[-1], rtol=0, atol=1e-9)
            if visit.logits is not None:
                begin, size = tree.nodes[node].begin, tree.nodes[node].size
                torch.testing.assert_close(visit.logits[row, :size], logits[begin + 1 :], rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch_bytes", [1, 30, 10_000])
def test_a_pass_holds_no_more_than_it_may(batch_bytes: int) -> None:
    case = example("space")
    several = [b"%d: the same question, asked of many" % number + b"?" * number for number in range(9)]
    visits = walk(Tree.of(several), start(case).extend([BOS]), batch_bytes)
    shapes = [visit.logits.shape[:2] for visit in visits if visit.logits is not None]
    assert sum(rows for rows, _ in shapes) == len(several)
    assert all(rows == 1 or rows * size <= batch_bytes for rows, size in shapes)
    assert (len(shapes) == 1) == (batch_bytes == 10_000)
