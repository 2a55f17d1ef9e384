"""The model's own forward pass as a graph: traced under clamps, narrowed to what is read, compiled.

`torch.compile` alone would skip TransformerLens's hooks, so the pass is traced first, by running
`HookedTransformer.forward` with hooks.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from math import prod
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_structure, tree_unflatten

from ih_interp.batch import Batch, Layout
from ih_interp.clamps import AbstractClamp, Shape
from ih_interp.clamps._blending import frozen_by, hooks_of_all
from ih_interp.engine.compile_cache import with_lasting_cache
from ih_interp.engine.fast_layers import substituted
from ih_interp.engine.query_only import VIEWS, aten, narrow, shape_of
from ih_interp.hooked_model import HookedModel
from ih_interp.model import named_for_model
from ih_interp.tasks.base import Task
from ih_interp.types import Residual

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by name."""

TINY = 16  # sides of a matrix below which a batched product is faster as a multiply and a sum


@runtime_checkable
class Asked(Protocol):
    """The fact of a task that the engine needs; few-shot tasks also have a `layout`."""

    @property
    def asks_last(self) -> bool: ...


class Sequences(NamedTuple):
    """The tensors of a batch, for a graph: no task, and answers only where a clamp reads them."""

    tokens: Int[Tensor, "*run batch pos"]
    targets: Int[Tensor, "*shape"]
    """`[batch]` where only the last position is asked."""
    roles: dict[str, Bool[Tensor, "*run batch query key"]] = {}  # noqa: RUF012  never written into
    """Answers and candidates, where there are any; those of few-shot sequences follow from tokens.
    """

    @classmethod
    def of(cls, batch: Batch, task: Asked, clamps: Sequence[AbstractClamp]) -> "Sequences":
        """Return the tensors of a batch of the task that a model under the clamps reads."""
        roles: dict[str, Tensor] = {}
        if not batch.is_few_shot and any(clamp.needs_batch is not False for clamp in clamps):
            for name in ("answers", "candidates"):
                with suppress(ValueError):  # the task does not say; clamps refuse what they lack
                    roles[name] = getattr(batch, name)
        return cls(batch.tokens, batch.target if task.asks_last else batch.targets, roles)

    def batch(self, layout: Layout | None, task: Task | None = None) -> Batch:
        """Return the batch; few-shot sequences have a layout, others may know their task."""
        own: dict[str, Any] = {"layout": layout} if layout is not None else {"task": task}
        return Batch(self.tokens, self.targets, **self.roles, **own)


class ClampedModel(nn.Module):
    """The logits under clamps; `functional_call` gives it weights and buffers.

    Clamps' tensors come as one flat list, `clamps.base.flat_tensors`, for compiled graphs. With
    a task that asks at the last position only, the logits are those, `[batch, 1, token]`, unless
    `whole` is true.
    """

    def __init__(
        self,
        model: HookedModel,
        clamps: Sequence[AbstractClamp],
        task: Asked,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.clamps = clamps
        self.asks_last = task.asks_last and not whole
        self.layout: Layout | None = getattr(task, "layout", None)
        shape = Shape.of(model)
        self._structure = tree_structure([clamp.tensors(shape) for clamp in clamps])

    def forward(
        self, sequences: Sequences, tensors: Sequence[Tensor], gates: Sequence[Tensor]
    ) -> Float[Tensor, "batch pos token"]:
        batch = sequences.batch(self.layout)
        hooks = hooks_of_all(self.model, batch, self.clamps, *self._of_clamps(tensors, gates))
        if self.asks_last:
            hooks.append((f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post", _query_row))
        with self.model.hooks(fwd_hooks=[*hooks]):
            return self.model(sequences.tokens)

    def frozen(self, tensors: Sequence[Tensor], gates: Sequence[Tensor]) -> Tensors:
        """Return masks of the parameters that clamps hold, by name; mostly there are none."""
        return frozen_by(self.model, self.clamps, *self._of_clamps(tensors, gates))

    def _of_clamps(self, tensors: Sequence[Tensor], gates: Sequence[Tensor]) -> tuple[Any, Any]:
        """Return every clamp's tensors, and its gate or None."""
        scheduled = iter(gates)
        of_all = [next(scheduled) if clamp.is_scheduled else None for clamp in self.clamps]
        return tree_unflatten(tensors, self._structure), of_all


def _query_row(resid: Residual, hook: Any) -> Float[Tensor, "batch 1 d_model"]:  # noqa: ARG001
    """Keep the query alone, which spares the other rows' final LayerNorm and unembedding."""
    return resid[:, -1:]


def trace_forward(
    clamped: ClampedModel, weights: Tensors, buffers: Tensors, *given: Any
) -> GraphModule:
    """Return one run's forward pass as a graph of (weights, buffers, *given).

    `given` is as `ClampedModel` takes it. The graph computes the logits, and nothing that they do
    not depend on.
    """

    def forward(weights: Tensors, buffers: Tensors, *given: Any) -> Tensor:
        return functional_call(clamped, named_for_model(weights, buffers), given)

    with substituted(clamped.model), torch.no_grad():
        # functionalize: the passes over the graph assume that no operation writes into its input.
        graph = traced(functionalize(forward), weights, buffers, *given)
    narrow(graph)
    drop_zero_biases(graph)
    return graph


def traced(function: Callable[..., Any], *example: Any) -> GraphModule:
    """Return the function as a graph, by running it on an example."""
    # The values share one mode of fake tensors: one mode per value would double the time.
    with tracing(TracingContext(FakeTensorMode())):
        return make_fx(function)(*example)


def compile_graph(graph: GraphModule, *example: Tensor) -> Callable[..., Any]:
    """Compile the graph for tensors of these shapes and strides, and run it on them once.

    `torch.compile` would read the graph as Python first, which takes longer than all else where it
    has been compiled before. The compiler's options are left alone: with some, a run alone and the
    same run in a fleet no longer have the same bytes.
    """
    from torch._inductor import compile as compile_as_it_is  # 2 s that eager training spares

    spell_out_tiny_products(graph)
    loosen_views(graph)
    compare_for_nan(graph)
    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    shapes: list[Any] = [fake.from_tensor(tensor, static_shapes=True) for tensor in example]

    def compile_it() -> Callable[..., Any]:
        compiled: Any = compile_as_it_is(deepcopy(graph), shapes)  # it changes its graph
        compiled(*example)
        return compiled

    with torch.no_grad():
        return with_lasting_cache(compile_it)


def compiler_found() -> bool:
    """Return whether there is the C++ compiler that compiling graphs needs."""
    from torch._inductor import config

    return any(name and shutil.which(name) for name in config.cpp.cxx)


def spell_out_tiny_products(graph: GraphModule) -> None:
    """Write batched products of matrices with sides of at most 16 as a multiply and a sum.

    Attention over 5 positions with heads 8 wide is thousands of such products. The compiler leaves
    them to a library, which reaches 1.5 GFLOP/s at this size; a multiply and a sum it compiles
    itself, together with the operations around them. It orders its loops by strides, so axes that
    were joined into one are taken apart again: evaluations take two thirds of the time.
    """
    call = graph.graph.call_function
    for node in list(graph.graph.nodes):
        if node.target is aten.bmm.default and _is_tiny(node):
            left, right = (_before_views(argument) for argument in node.args)
            if shape_of(left)[:-2] != shape_of(right)[:-2]:
                left, right = node.args
            axes = len(shape_of(left))
            with graph.graph.inserting_before(node):
                wide = call(aten.unsqueeze.default, (left, axes))
                tall = call(aten.unsqueeze.default, (right, axes - 2))
                product = call(aten.mul.Tensor, (wide, tall))
                total = call(aten.sum.dim_IntList, (product, [axes - 1]))
                total = call(aten.reshape.default, (total, list(shape_of(node))))
            total.meta = node.meta
            node.replace_all_uses_with(total)
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def _before_views(node: Node) -> Node:
    """Return the stack of matrices before its axes were joined into one, which hides strides."""
    source = node
    while source.target in VIEWS or source.target is aten.expand.default:
        source = source.all_input_nodes[0]
        shape = shape_of(source)
        if shape[-2:] == shape_of(node)[-2:] and prod(shape[:-2]) == shape_of(node)[0]:
            return source
    return node


def loosen_views(graph: GraphModule) -> None:
    """Turn views into reshapes: a view fails where its input now has other strides."""
    for node in graph.graph.nodes:
        if node.target in VIEWS:
            node.target = aten.reshape.default
    graph.recompile()


def compare_for_nan(graph: GraphModule) -> None:
    """Ask long rows for NaN as what differs from itself: `isnan` is compiled number by number."""
    for node in graph.graph.nodes:
        if node.target is aten.isnan.default and (shape_of(node) or (0,))[-1] > TINY:
            node.target, node.args = aten.ne.Tensor, (node.args[0], node.args[0])
    graph.recompile()


def drop_zero_biases(graph: GraphModule) -> None:
    """Drop a constant of zeros that is added to a matrix product: attention has no biases here.

    The library would copy the zeros into every row before it multiplies.
    """
    for node in list(graph.graph.nodes):
        if node.target is aten.addmm.default and _is_zero(graph, node.args[0]):
            with graph.graph.inserting_before(node):
                product = graph.graph.call_function(aten.mm.default, node.args[1:3])
            product.meta = node.meta
            node.replace_all_uses_with(product)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_zero(graph: GraphModule, bias: object) -> bool:
    """Return whether this is a constant of zeros, seen through changes of shape."""
    while isinstance(bias, Node) and bias.target in VIEWS:
        bias = bias.all_input_nodes[0]
    if not isinstance(bias, Node) or bias.op != "get_attr":
        return False
    return not bool(getattr(graph, str(bias.target)).any())


def _is_tiny(node: Node) -> bool:
    shapes = [shape_of(argument) for argument in node.args if isinstance(argument, Node)]
    return len(shapes) == 2 and all(max(shape[1:]) <= TINY for shape in shapes)
