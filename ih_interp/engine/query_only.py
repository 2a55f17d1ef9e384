"""A pass over a traced forward pass: what only one position reads is computed for that one alone.

The loss reads the query; the last layer's queries, patterns and outputs at other positions are
computed for nothing. The pass follows what is read, from the end of the graph to its beginning,
and stops where somebody reads everything.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

Shape: TypeAlias = Sequence[int]
Axes: TypeAlias = dict[Node, int | None]
"""Of every input of an operation, the axis that becomes the output's; None if it has no such."""


def _after(shape: Shape, axis: int) -> int:
    """Elements of one index of an axis; empty axes count as one, for what is cut from none."""
    return math.prod(max(1, size) for size in shape[axis + 1 :])


@dataclass(frozen=True)
class Slab:
    """Elements `f`, counted along all axes, with `(f // stride) % n == index`.

    One index of an axis, said so that it stays the same when axes are merged or split.
    """

    n: int
    stride: int
    index: int

    @classmethod
    def of(cls, shape: Shape, axis: int, index: int) -> "Slab":
        axis = axis % len(shape)
        return cls(shape[axis], _after(shape, axis), min(max(index, 0), shape[axis] - 1))

    def axis(self, shape: Shape) -> int | None:
        """The axis of a shape that is thinned, be it merged with others; None if it is none."""
        for axis, size in enumerate(shape):
            after = _after(shape, axis)
            if self.stride % after == 0 and size % (self.n * (self.stride // after)) == 0:
                return axis
        return None

    def of_shape(self, shape: Shape) -> list[int]:
        """What is left of a shape."""
        axis = self.axis(shape)
        return [size // self.n if place == axis else size for place, size in enumerate(shape)]

    def moved(self, shape: Shape, to: Shape, axis: int) -> "Slab":
        """The same slab of an input whose `axis` became this one of an output of `shape`."""
        own = self.axis(shape)
        assert own is not None
        inner = self.stride // _after(shape, own)
        return replace(self, stride=inner * _after(to, axis))


def narrow(graph: GraphModule) -> None:
    """Compute only what is read; values are the same to rounding."""
    _plain(graph.graph)
    graph.graph.eliminate_dead_code()
    wanted = _wanted(graph.graph)
    for node in list(graph.graph.nodes):
        _rewrite(node, wanted)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _plain(graph: Graph) -> None:
    """Two operations that stand for writing into a slice, as `vmap` can take them."""
    for node in list(graph.nodes):
        if node.target is aten.copy.default:
            size, to = list(_shape(node)), dict[str, Any](dtype=_dtype(node))
            with graph.inserting_before(node):
                cast = graph.call_function(aten._to_copy.default, (node.args[1],), to)
                wide = graph.call_function(aten.expand.default, (cast, size))
            cast.meta = {"val": torch.empty(_shape(_source(node, 1)), device="meta")}
            wide.meta = node.meta
            node.replace_all_uses_with(wide)
        elif node.target is aten.slice_scatter.default:
            size, end = _shape(node)[_number(node, 2)], node.args[4] if len(node.args) > 4 else None
            if isinstance(end, int):
                node.update_arg(4, min(size, end))


def _wanted(graph: Graph) -> dict[Node, Slab | None]:
    """What is read of every node: a slab, or all of it (None)."""
    wanted: dict[Node, Slab | None] = {}
    for node in reversed(graph.nodes):
        slab = wanted.get(node)
        inputs = _inputs_wanted(node, slab)
        if inputs is None:
            wanted[node] = None
            inputs = dict.fromkeys(node.all_input_nodes)
        for source, part in inputs.items():
            if part is not None and _shape(source) == ():
                part = None
            wanted[source] = part if wanted.get(source, part) == part else None
    return wanted


def _inputs_wanted(node: Node, slab: Slab | None) -> dict[Node, Slab | None] | None:
    """What a node reads of its inputs to give this slab; None if it has to give everything."""
    if slab is None:
        read = _reads_one(node)
        return None if read is None else {node.all_input_nodes[0]: read}
    shape = _shape(node)
    if node.target in VIEWS:
        source = node.all_input_nodes[0]
        return None if slab.axis(_shape(source)) is None else {source: slab}
    axis = slab.axis(shape)
    find = AXES.get(node.target, _pointwise if _is_pointwise(node) else None)
    axes = None if find is None or axis is None else find(node, axis)
    if axes is None:
        return None
    return {
        source: None if place is None else slab.moved(shape, _shape(source), place)
        for source, place in axes.items()
    }


def _reads_one(node: Node) -> Slab | None:
    """The slab that a node picks out of its input, if that is what it does."""
    if node.target not in (aten.slice.Tensor, aten.select.int):
        return None
    shape = _shape(node.all_input_nodes[0])
    axis = _number(node, 1) % len(shape)
    several = node.target is aten.slice.Tensor and _shape(node)[axis] != 1
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
        if wanted[source] == inputs[source]:  # the one that it picks is all there is
            _pick_first(node)
        return
    for source, part in inputs.items():
        if part is not None and wanted[source] is None:
            with node.graph.inserting_before(node):
                node.replace_input_with(source, _slice(node.graph, source, part))
    if node.target in (*VIEWS, aten.expand.default):
        node.update_arg(1, slab.of_shape(_shape(node)))
    if node.target in VIEWS:
        node.target = aten.reshape.default  # what is left need not lie as it did


def _pick_first(node: Node) -> None:
    place = (0, 1) if node.target is aten.slice.Tensor else (0,)
    node.args = (*node.args[:2], *place)


def _slice(graph: Graph, source: Node, slab: Slab) -> Node:
    """The slab of a node that is computed whole."""
    shape = _shape(source)
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


def _is_pointwise(node: Node) -> bool:
    if node.target in SAME_SHAPE:
        return True
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _pointwise(node: Node, axis: int) -> Axes:
    """Axes are matched from the last, and an axis of size 1 serves every index."""
    from_end = len(_shape(node)) - axis
    axes: Axes = {}
    for source in node.all_input_nodes:
        shape = _shape(source)
        missing = from_end > len(shape) or shape[-from_end] == 1
        axes[source] = None if missing else len(shape) - from_end
    return axes


def _unless(where: int) -> Callable[[Node, int], Axes | None]:
    """The same axis of every input, unless it is the one named by that argument."""

    def find(node: Node, axis: int) -> Axes | None:
        if _number(node, where) % len(_shape(node)) == axis:
            return None
        return dict.fromkeys(node.all_input_nodes, axis)

    return find


def _reduction(node: Node, axis: int) -> Axes | None:
    (source,) = node.all_input_nodes
    rank = len(_shape(source))
    reduced = node.args[1]
    if not isinstance(reduced, list | tuple) or not reduced:
        return None
    gone = {int(place) % rank for place in reduced}  # pyright: ignore[reportArgumentType]
    if len(_shape(node)) == rank:
        return None if axis in gone else {source: axis}
    return {source: [place for place in range(rank) if place not in gone][axis]}


def _permute(node: Node, axis: int) -> Axes:
    order: Any = node.args[1]
    (source,) = node.all_input_nodes
    return {source: order[axis] % len(order)}


def _transpose(node: Node, axis: int) -> Axes:
    (source,) = node.all_input_nodes
    rank = len(_shape(source))
    first, second = (_number(node, place) % rank for place in (1, 2))
    return {source: {first: second, second: first}.get(axis, axis)}


def _unsqueeze(node: Node, axis: int) -> Axes:
    (source,) = node.all_input_nodes
    new = _number(node, 1) % len(_shape(node))
    return {source: axis - (axis > new)}


def _select(node: Node, axis: int) -> Axes:
    (source,) = node.all_input_nodes
    gone = _number(node, 1) % len(_shape(source))
    return {source: axis + (axis >= gone)}


def _matrices(node: Node, axis: int) -> Axes | None:
    """`left @ right`, for one product or a batch of them, plus a bias in `addmm`."""
    *bias, left, right = (argument for argument in node.args if isinstance(argument, Node))
    rank = len(_shape(left))
    if len({left, right, *bias}) < len(bias) + 2:
        return None  # one tensor in two places, of which different parts are read
    axes: Axes = {left: None, right: None}
    if axis == rank - 3:
        axes = {left: 0, right: 0}
    else:
        axes[left if axis == rank - 2 else right] = axis
    for vector in bias:
        axes[vector] = _pointwise(node, axis)[vector]
    return axes


AXES: dict[Any, Callable[[Node, int], Axes | None]] = {
    aten._softmax.default: _unless(1),
    aten._log_softmax.default: _unless(1),
    aten.slice.Tensor: _unless(1),
    aten.slice_scatter.default: _unless(2),
    aten.cat.default: _unless(1),
    aten.mean.dim: _reduction,
    aten.sum.dim_IntList: _reduction,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: lambda node, axis: {node.all_input_nodes[0]: 1 - axis},
    aten.unsqueeze.default: _unsqueeze,
    aten.select.int: _select,
    aten.mm.default: _matrices,
    aten.bmm.default: _matrices,
    aten.addmm.default: _matrices,
}
"""Where an axis of an operation's output comes from; what is not named computes everything."""


def _number(node: Node, place: int) -> int:
    """An argument that says an axis or an index; 0 where it is left out."""
    given: Any = node.args[place] if len(node.args) > place else 0
    return int(given or 0)


def _source(node: Node, place: int) -> Node:
    source = node.args[place]
    assert isinstance(source, Node)
    return source


def _dtype(node: Node) -> torch.dtype:
    value: Any = node.meta.get("val", node.meta.get("tensor_meta"))
    return value.dtype


def _shape(node: Node) -> tuple[int, ...]:
    value: Any = node.meta.get("val", node.meta.get("tensor_meta"))
    return tuple(getattr(value, "shape", ()))
