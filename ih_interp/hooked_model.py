"""The seam to TransformerLens: what clamps and analysis need of a model, whatever its class.

Checkers of types read `HookedModel` as TransformerLens's two classes of models; while a program
runs it is all that has the same parts, so that neither class has to be there.
"""

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from ih_interp._expect import expect

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge

    HookedModel: TypeAlias = HookedTransformer | TransformerBridge
else:

    @runtime_checkable
    class HookedModel(Protocol):
        """A model with TransformerLens's hook points, settings and names of weights."""

        @property
        def cfg(self) -> Any:
            """Return the settings: `n_layers`, `n_heads`, `d_model` and so on."""

        @property
        def blocks(self) -> Any:
            """Return the layers, in order; each has `attn` and its weights."""

        @property
        def unembed(self) -> Any:
            """Return the unembedding, with `W_U` and `b_U`."""

        @property
        def hook_dict(self) -> Any:
            """Return the hook points by name."""

        def hooks(self, fwd_hooks: Any) -> Any:
            """Return a block in which functions act on the activations at hook points."""

        def run_with_cache(self, *inputs: Any, **options: Any) -> Any:
            """Return the logits, and the activations at hook points."""

        def __call__(self, *inputs: Any, **options: Any) -> Any:
            """Return the logits, `[batch, pos, token]`."""


REMEDY = "give a HookedTransformer or a TransformerBridge; a run's is run.model(step)"


def expect_model(value: object) -> None:
    """Raise TypeError for what is not a `HookedModel`."""
    kind: Any = HookedModel
    expect(value, kind, "The model", REMEDY)
