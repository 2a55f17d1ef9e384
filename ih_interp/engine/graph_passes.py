"""Changes of traced graphs where the compiler or its libraries do an operation badly."""

from torch.fx import GraphModule, Node

from ih_interp.engine.query_only import VIEWS, aten, shape_of

TINY = 16  # sides of a matrix below which a batched product is faster as a multiply and a sum


def spell_out_tiny_products(graph: GraphModule) -> None:
    """Write batched products of matrices with sides of at most 16 as a multiply and a sum.

    Attention over 5 positions with heads 8 wide is thousands of such products. The compiler leaves
    them to a library, which reaches 1.5 GFLOP/s at this size; a multiply and a sum it compiles
    itself, together with the operations around them.
    """
    call = graph.graph.call_function
    for node in list(graph.graph.nodes):
        if node.target is aten.bmm.default and _is_tiny(node):
            left, right = node.args
            with graph.graph.inserting_before(node):
                wide = call(aten.unsqueeze.default, (left, 3))
                tall = call(aten.unsqueeze.default, (right, 1))
                product = call(aten.mul.Tensor, (wide, tall))
                total = call(aten.sum.dim_IntList, (product, [2]))
            node.replace_all_uses_with(total)
            graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()


def loosen_views(graph: GraphModule) -> None:
    """Turn views into reshapes: a view fails where its input now has other strides."""
    for node in graph.graph.nodes:
        if node.target in VIEWS:
            node.target = aten.reshape.default
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
    is_constant = isinstance(bias, Node) and bias.op == "get_attr"
    return is_constant and not bool(getattr(graph, str(bias.target)).any())


def _is_tiny(node: Node) -> bool:
    shapes = [shape_of(argument) for argument in node.args if isinstance(argument, Node)]
    return len(shapes) == 2 and all(max(shape[1:]) <= TINY for shape in shapes)
