"""Texts that begin alike, read once: a radix tree over them, and the walk of a session along it.

A context stands in front of four endings, five solved examples in front of every question. The tree's nodes are the
stretches that texts share; a batch of nodes is one pass of the session, whose rows are then multiplied for the nodes
below. A session's rows share their past, so that costs little.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bltkit.generate.session import Session
from bltkit.vocab import OFFSET

WORTHWHILE = 128
"""Bytes that a stretch has to save: below that, a pass of its own costs more than reading it again."""
POOL = 16
"""Passes that wait below nodes already read, before they are made: among many nodes more are of like length."""
TIGHT = 0.9
"""A batch that is a quarter full ends in front of a node so much shorter than its longest, which would be padded."""
ROOT = 0


@dataclass(frozen=True)
class Node:
    """The bytes [begin, stop) of `text`, behind those of the node's parent. The root stands for BOS and holds none."""

    text: bytes
    parent: int
    begin: int
    stop: int
    ends: tuple[int, ...] = ()
    """Numbers of the texts that end here."""
    children: tuple[int, ...] = ()

    @property
    def data(self) -> bytes:
        """Its own bytes."""
        return self.text[self.begin : self.stop]

    @property
    def size(self) -> int:
        """How many they are."""
        return self.stop - self.begin


@dataclass(frozen=True)
class Tree:
    """`nodes[0]` is the root; a parent comes before its children. leaves[i]: the node at which text i ends."""

    nodes: tuple[Node, ...]
    leaves: tuple[int, ...]

    @classmethod
    def of(cls, texts: Sequence[bytes], worthwhile: float = WORTHWHILE) -> "Tree":
        """The tree of some texts, equal ones and empty ones among them as it may be.

        A stretch is shared where that saves at least `worthwhile` bytes: (texts - 1) times its length.
        """
        order = sorted(range(len(texts)), key=lambda at: texts[at])
        parents, begins, stops, owners = [ROOT], [0], [0], [b""]
        ends: list[list[int]] = [[]]
        # Sorted texts lo..hi share their first `at` bytes; those in front of `read` belong to the node `parent`.
        work = [(0, len(order), 0, 0, ROOT)]

        def node(parent: int, begin: int, stop: int, text: bytes) -> int:
            parents.append(parent)
            begins.append(begin)
            stops.append(stop)
            owners.append(text)
            ends.append([])
            return len(parents) - 1

        while work:
            lo, hi, at, read, parent = work.pop()
            ending = lo
            while ending < hi and len(texts[order[ending]]) == at:
                ending += 1
            if ending > lo:
                here = parent if at == read else node(parent, read, at, texts[order[lo]])
                ends[here] += order[lo:ending]
            first = ending
            while first < hi:
                last = first + 1
                while last < hi and texts[order[last]][at] == texts[order[first]][at]:
                    last += 1
                text = texts[order[first]]
                shared = _common(text, texts[order[last - 1]])
                if (last - first - 1) * (shared - read) >= worthwhile and shared > read:
                    work.append((first, last, shared, shared, node(parent, read, shared, text)))
                else:
                    work.append((first, last, shared, read, parent))
                first = last
        return cls._linked(parents, begins, stops, owners, ends, len(texts))

    @classmethod
    def _linked(
        cls,
        parents: list[int],
        begins: list[int],
        stops: list[int],
        owners: list[bytes],
        ends: list[list[int]],
        count: int,
    ) -> "Tree":
        children: list[list[int]] = [[] for _ in parents]
        for at, parent in enumerate(parents[1:], 1):
            children[parent].append(at)
        leaves = [ROOT] * count
        for at, own in enumerate(ends):
            for text in own:
                leaves[text] = at
        nodes = tuple(
            Node(owners[at], parents[at], begins[at], stops[at], tuple(ends[at]), tuple(children[at]))
            for at in range(len(parents))
        )
        return cls(nodes, tuple(leaves))

    @property
    def num_bytes(self) -> int:
        """Bytes that are read."""
        return sum(node.size for node in self.nodes)


@dataclass(frozen=True, eq=False)
class Visit:
    """Some nodes, read side by side.

    logits: [R, S, V] raw; column k is behind byte begin + k of the row's node. None at the root, which reads no byte.
    session: behind each node, a row for each.
    """

    nodes: tuple[int, ...]
    logits: Float[Tensor, "R S V"] | None
    session: Session


def walk(tree: Tree, session: Session, batch_bytes: int) -> Iterator[Visit]:
    """Every node of the tree once, parents first; `session` has one row and stands behind BOS.

    batch_bytes: positions of a pass, padding counted (at least one node). Depth first, as soon as POOL passes wait
    below: what is held at a time are the batches on the way to the one being read, not the whole tree.
    """
    first = Visit((ROOT,), None, session)
    yield first
    yield from _below(tree, [first], batch_bytes)


def _below(tree: Tree, visits: Sequence[Visit], batch_bytes: int) -> Iterator[Visit]:
    children = [
        (place, row, child)
        for place, visit in enumerate(visits)
        for row, node in enumerate(visit.nodes)
        for child in tree.nodes[node].children
    ]
    # Of similar length side by side: little padding.
    children.sort(key=lambda one: -tree.nodes[one[2]].size)
    waiting: list[Visit] = []
    size = 0
    while children:
        count = _fitting([tree.nodes[child].size for _, _, child in children], batch_bytes)
        group, children = sorted(children[:count]), children[count:]
        nodes = tuple(child for _, _, child in group)
        ids = [[byte + OFFSET for byte in tree.nodes[child].data] for child in nodes]
        behind, logits = _joined(visits, group).along(ids)
        yield Visit(nodes, logits, behind)
        if inner := [row for row, child in enumerate(nodes) if tree.nodes[child].children]:
            # Without the logits and the other rows, which are no longer needed.
            waiting.append(Visit(tuple(nodes[row] for row in inner), None, behind.select(inner)))
            size += sum(tree.nodes[child].size for row in inner for child in tree.nodes[nodes[row]].children)
        del logits, behind
        if waiting and (size >= POOL * batch_bytes or not children):
            yield from _below(tree, waiting, batch_bytes)
            waiting, size = [], 0


def _fitting(sizes: Sequence[int], batch_bytes: int) -> int:
    """How many nodes, longest first, are read side by side: what fits, less where the rest would be mostly padding."""
    longest, count = sizes[0], 1
    while count < len(sizes) and (count + 1) * longest <= batch_bytes:
        if sizes[count] < longest * TIGHT and count * longest >= batch_bytes / 4:
            break
        count += 1
    return count


def _joined(visits: Sequence[Visit], group: Sequence[tuple[int, int, int]]) -> Session:
    """One session whose rows are those of the group, which is sorted by visit."""
    places = sorted({place for place, _, _ in group})
    parts = [visits[at].session.select([row for place, row, _ in group if place == at]) for at in places]
    return parts[0] if len(parts) == 1 else Session.join(parts)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with alike."""
    limit = min(len(one), len(other))
    low, high = 0, limit  # the first `low` are alike, those of `high` + 1 are not
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
