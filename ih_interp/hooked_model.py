"""The seam to TransformerLens: what clamps and analysis need of a model, whatever its class.

Checkers of types read `HookedModel` as TransformerLens's two classes of models; while a program
runs it is all that has the same parts, so that neither class has to be there.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from ih_interp._expect import expect

LENS_VERSION = version("transformer-lens")
HAS_HOOKED_TRANSFORMERS = LENS_VERSION.startswith("3.")
"""Whether TransformerLens has the class that is trained; 4.0 removed it."""

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer as HookedTransformer
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

    if HAS_HOOKED_TRANSFORMERS:
        from transformer_lens import HookedTransformer
    else:
        HookedTransformer = HookedModel  # for annotations of functions that make none


REMEDY = "give a HookedTransformer or a TransformerBridge; a run's is run.model(step)"


def expect_model(value: object) -> None:
    """Raise TypeError for what is not a `HookedModel`."""
    kind: Any = HookedModel
    expect(value, kind, "The model", REMEDY)


def is_bridge(model: object) -> bool:
    """Return whether a model is a `TransformerBridge`, which runs another library's modules."""
    return hasattr(model, "original_model")


def expect_hooked_transformers(what: str, model: object = None) -> None:
    """Refuse a bridge, and TransformerLens 4, where a HookedTransformer is made or trained.

    Raises ImportError where the installed version has none, TypeError for a bridge.
    """
    if not HAS_HOOKED_TRANSFORMERS:
        raise ImportError(
            f"{what} needs a HookedTransformer, which transformer-lens {LENS_VERSION} does not "
            "have: to build and train models, pip install 'transformer-lens>=3.9,<4'. Clamps and "
            "analysis work on a TransformerBridge of this version."
        )
    if is_bridge(model):
        raise TypeError(
            f"{what} trains a HookedTransformer: expected one, got a TransformerBridge, on which "
            "clamps and analysis work; build_model makes one, or HookedTransformer(cfg)."
        )
