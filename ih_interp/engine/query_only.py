"""Narrowing of a traced forward pass: what is read at one position is computed at that one alone.

The loss reads the query. The last layer's queries, patterns and outputs at other positions would be
computed for nothing, and no compiler leaves them out: to it, slicing comes after the computation.

`_wanted` goes through the graph from end to start and notes which part of every operation's result
is read: all of it, or one index of one axis (a `Slab`). To give a slab, an operation needs the same
slab of its inputs, at an axis that `AXES` gives; an operation that is not in that table, or mixes
the axis (a softmax over it, a sum), needs its inputs whole. `_rewrite` then feeds slabs to the
operations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

Shape: TypeAlias = Sequence[int]
Axes: TypeAlias = dict[Node, int | None]
"""For each input of an operation: the input axis that maps to the given output axis, or None."""


def _after(shape: Shape, axis: int) -> int:
    """Return how many elements one index of an axis has; empty axes count as one."""
    return math.prod(max(1, size) for size in shape[axis + 1 :])


@dataclass(frozen=True)
class Slab:
    """One index of an axis: the elements with `element // stride % n == index`.

    Elements are counted along all axes, so that a slab stays the same where a view merges or splits
    axes: TransformerLens computes heads as one axis of `n_heads * d_head`, and batches of products
    as one of `batch * head`.
    """

    n: int
    stride: int
    index: int

    @classmethod
    def of(cls, shape: Shape, axis: int, index: int) -> "Slab":
        axis = axis % len(shape)
        return cls(shape[axis], _after(shape, axis), min(max(index, 0), shape[axis] - 1))

    def axis(self, shape: Shape) -> int | None:
        """Return the axis of a shape that holds the slab's, alone or merged; None if none does."""
        for axis, size in enumerate(shape):
            after = _after(shape, axis)
            if self.stride % after == 0 and size % (self.n * (self.stride // after)) == 0:
                return axis
        return None

    def of_shape(self, shape: Shape) -> list[int]:
        """Return the shape of the slab in a tensor of this shape."""
        axis = self.axis(shape)
        return [size // self.n if place == axis else size for place, size in enumerate(shape)]

    def moved(self, shape: Shape, to: Shape, axis: int) -> "Slab":
        """Return the slab of an input `to`, whose `axis` became the slab's in an output `shape`."""
        own = self.axis(shape)
        assert own is not None
        inner = self.stride // _after(shape, own)
        return replace(self, stride=inner * _after(to, axis))


def narrow(graph: GraphModule) -> None:
    """Have the graph compute only what is read; its values stay the same to rounding."""
    _plain(graph.graph)
    graph.graph.eliminate_dead_code()
    wanted = _wanted(graph.graph)
    for node in list(graph.graph.nodes):
        _rewrite(node, wanted)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _plain(graph: Graph) -> None:
    """Rewrite the two operations that stand for writing into a slice: `vmap` does not take them.

    A copy becomes a cast and an expansion, an open end of the slice the size of its axis.
    """
    for node in list(graph.nodes):
        if node.target is aten.copy.default:
            size, to = list(shape_of(node)), dict[str, Any](dtype=_traced(node).dtype)
            source: Any = node.args[1]
            with graph.inserting_before(node):
                cast = graph.call_function(aten._to_copy.default, (source,), to)
                wide = graph.call_function(aten.expand.default, (cast, size))
            cast.meta = {"val": torch.empty(shape_of(source), device="meta")}
            wide.meta = node.meta
            node.replace_all_uses_with(wide)
        elif node.target is aten.slice_scatter.default:
            end = node.args[4] if len(node.args) > 4 else None
            if isinstance(end, int):
                node.update_arg(4, min(shape_of(node)[_number(node, 2)], end))


def _wanted(graph: Graph) -> dict[Node, Slab | None]:
    """Return what is read of every node: a slab, or all of it (None)."""
    wanted: dict[Node, Slab | None] = {}
    for node in reversed(graph.nodes):
        slab = wanted.get(node)
        inputs = _inputs_wanted(node, slab)
        if inputs is None:
            wanted[node] = None
            inputs = dict.fromkeys(node.all_input_nodes)
        for source, part in inputs.items():
            if part is not None and shape_of(source) == ():
                part = None
            # Readers of different slabs need the node whole.
            wanted[source] = part if wanted.get(source, part) == part else None
    return wanted


def _inputs_wanted(node: Node, slab: Slab | None) -> dict[Node, Slab | None] | None:
    """Return what a node reads of its inputs to give this slab; None if it must give all."""
    if slab is None:
        read = _reads_one(node)
        return None if read is None else {node.all_input_nodes[0]: read}
    shape = shape_of(node)
    if node.target in VIEWS:
        source = node.all_input_nodes[0]
        return None if slab.axis(shape_of(source)) is None else {source: slab}
    axis = slab.axis(shape)
    same = node.target in SAME_SHAPE or torch.Tag.pointwise in getattr(node.target, "tags", ())
    find = AXES.get(node.target, _pointwise if same else None)
    axes = None if find is None or axis is None else find(node, axis)
    if axes is None:
        return None
    return {
        source: None if place is None else slab.moved(shape, shape_of(source), place)
        for source, place in axes.items()
    }


def _reads_one(node: Node) -> Slab | None:
    """Return the slab that a node picks out of its input, if that is what it does."""
    if node.target not in (aten.slice.Tensor, aten.select.int):
        return None
    shape = shape_of(node.all_input_nodes[0])
    axis = _number(node, 1) % len(shape)
    several = node.target is aten.slice.Tensor and shape_of(node)[axis] != 1
    if several or shape[axis] == 1:
        return None
    start = _number(node, 2)
    return Slab.of(shape, axis, start + shape[axis] if start < 0 else start)


def _rewrite(node: Node, wanted: dict[Node, Slab | None]) -> None:
    """Give a node the inputs that it needs now."""
    slab = wanted.get(node)
    inputs = _inputs_wanted(node, slab)
    if inputs is None:
        return
    if slab is None:
        source = node.all_input_nodes[0]
        if wanted[source] == inputs[source]:  # the index that it picks is the only one left
            place = (0, 1) if node.target is aten.slice.Tensor else (0,)
            node.args = (*node.args[:2], *place)
        return
    for source, part in inputs.items():
        if part is not None and wanted[source] is None:
            with node.graph.inserting_before(node):
                node.replace_input_with(source, _slice(node.graph, source, part))
    if node.target in (*VIEWS, aten.expand.default):
        node.update_arg(1, slab.of_shape(shape_of(node)))
    if node.target in VIEWS:
        node.target = aten.reshape.default  # what is left need not lie as it did


def _slice(graph: Graph, source: Node, slab: Slab) -> Node:
    """Take the slab of a node that is computed whole, since others read all of it."""
    shape = shape_of(source)
    split = graph.call_function(aten.reshape.default, (source, [-1, slab.n, slab.stride]))
    one = graph.call_function(aten.slice.Tensor, (split, 1, slab.index, slab.index + 1))
    return graph.call_function(aten.reshape.default, (one, slab.of_shape(shape)))


VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)

SAME_SHAPE = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.expand.default,
)


def _pointwise(node: Node, axis: int) -> Axes:
    """Match axes from the last, as broadcasting does; an axis of size 1 serves every index."""
    from_end = len(shape_of(node)) - axis

    def place(shape: Shape) -> int | None:
        missing = from_end > len(shape) or shape[-from_end] == 1
        return None if missing else len(shape) - from_end

    return {source: place(shape_of(source)) for source in node.all_input_nodes}


def _unless(where: int) -> Callable[[Node, int], Axes | None]:
    """Return the rule of the same axis, unless it is the one that the operation goes along."""

    def find(node: Node, axis: int) -> Axes | None:
        if _number(node, where) % len(shape_of(node)) == axis:
            return None
        return dict.fromkeys(node.all_input_nodes, axis)

    return find


def _moved(node: Node, axis: int) -> Axes | None:
    """Follow one input's axes to where an operation that moves, adds or drops some has them."""
    (source,), given = node.all_input_nodes, cast(Any, node.args[1:])
    rank = len(shape_of(source))
    axes: list[int | None] = list(range(rank))
    match node.target:
        case aten.permute.default:
            axes = [place % rank for place in given[0]]
        case aten.transpose.int:
            first, second = given
            axes[first], axes[second] = axes[second], axes[first]
        case aten.t.default:
            axes.reverse()
        case aten.unsqueeze.default:
            axes.insert(given[0] % (rank + 1), None)
        case aten.select.int:
            del axes[given[0]]
        case _:  # a mean or a sum, over all axes where it names none
            keeps = len(shape_of(node)) == rank
            gone = {place % rank for place in given[0] or range(rank)}
            axes = [None if n in gone else n for n in range(rank) if keeps or n not in gone]
    return None if axes[axis] is None else {source: axes[axis]}


def _matrices(node: Node, axis: int) -> Axes | None:
    """Take rows from the left matrix, columns from the right, batches from both."""
    *bias, left, right = (argument for argument in node.args if isinstance(argument, Node))
    rank = len(shape_of(left))
    if len({left, right, *bias}) < len(bias) + 2:
        return None  # one tensor in two places, of which different parts are read
    is_batch, is_row = axis == rank - 3, axis == rank - 2
    axes: Axes = {left: axis if is_batch or is_row else None, right: None if is_row else axis}
    return axes | {vector: _pointwise(node, axis)[vector] for vector in bias}


AXES: dict[Any, Callable[[Node, int], Axes | None]] = {
    **dict.fromkeys((aten._softmax.default, aten._log_softmax.default), _unless(1)),
    **dict.fromkeys((aten.slice.Tensor, aten.cat.default), _unless(1)),
    aten.slice_scatter.default: _unless(2),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.t.default), _moved),
    **dict.fromkeys((aten.unsqueeze.default, aten.select.int), _moved),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList), _moved),
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default), _matrices),
}
"""Rules that find an output axis in an operation's inputs; without a rule all is computed."""


def _number(node: Node, place: int) -> int:
    """Return an argument that is an axis or an index; 0 where it is left out."""
    given: Any = node.args[place] if len(node.args) > place else 0
    return int(given or 0)


def _traced(node: Node) -> Any:
    """Return the value with which the node was traced, or its shape and dtype."""
    return node.meta.get("val", node.meta.get("tensor_meta"))


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the shape of a node's value; () for anything but a tensor."""
    return tuple(getattr(_traced(node), "shape", ()))
