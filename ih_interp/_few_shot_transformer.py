"""The parts of TransformerLens's `HookedTransformer` that few-shot models replace.

TransformerLens 4.0 removed that class: this module is imported only where a model is made.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.components.unembed import Unembed
from transformer_lens.hook_points import HookPoint

from ih_interp._torch_state import plain_torch


class UnembedWithHook(Unembed):
    """TransformerLens's unembedding with a hook point at the logits."""

    def __init__(self, cfg: HookedTransformerConfig) -> None:
        super().__init__(cfg)
        self.hook_logits = HookPoint()

    def forward(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos label"]:
        return self.hook_logits(super().forward(residual))


class FewShotTransformer(HookedTransformer):
    """TransformerLens's model with a few-shot embedding, whose weights can be processed too."""

    def center_writing_weights(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Centre weights as TransformerLens does, and with what makes `W_E` all of its rows."""
        for name in ("W_label", "W_in", "b_in"):
            weight = state_dict[f"embed.{name}"]
            state_dict[f"embed.{name}"] = weight - weight.mean(dim=-1, keepdim=True)
        # TransformerLens asks for a table of embeddings, which few-shot models do not store.
        state_dict["embed.W_E"] = torch.zeros(1, self.cfg.d_model)
        centred = super().center_writing_weights(state_dict)
        del centred["embed.W_E"]
        return centred

    def load_and_process_state_dict(
        self,
        state_dict: dict[str, Tensor],
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        refactor_factored_attn_matrices: bool = False,
    ) -> None:
        """Process weights as TransformerLens does, where log probabilities stay the same.

        Raises ValueError, before anything is changed, where TransformerLens cannot process these
        weights without changing what they compute.
        """
        given = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
        options = {
            "fold_ln": fold_ln,
            "center_unembed": center_unembed,
            "fold_value_biases": fold_value_biases,
            "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
            "center_writing_weights": False,
        }

        def process(model: "FewShotTransformer", state: dict[str, Tensor]) -> None:
            # Only a norm that centres what it reads makes centring what is written exact.
            if center_writing_weights and model.cfg.normalization_type in ("LN", "LNPre"):
                state = model.center_writing_weights(state)
            HookedTransformer.load_and_process_state_dict(model, state, **options)

        before, after = copy.deepcopy(self), copy.deepcopy(self)
        try:
            before.load_state_dict(given, strict=False)
            process(after, dict(given))
        except Exception as error:  # TransformerLens asserts, and torch raises what it likes
            raise ValueError(
                f"The weights cannot be processed in this way ({error}); leave out the options "
                "that do not fit this model. Nothing was changed."
            ) from error
        if not _same_predictions(before, after):
            raise ValueError(
                "Processing these weights would change what the model predicts: "
                f"normalization_type={self.cfg.normalization_type!r}, {options}. Leave out "
                "fold_ln or center_writing_weights. Nothing was changed."
            )
        process(self, dict(given))


@plain_torch()
def _same_predictions(one: HookedTransformer, other: HookedTransformer) -> bool:
    """Return whether two models give the same log probabilities for some sequences, to rounding."""
    tokens = torch.arange(8 * one.cfg.n_ctx).reshape(8, -1) * 7 % one.cfg.d_vocab
    first, second = (model(tokens.to(model.W_U.device)) for model in (one, other))
    allowed = torch.finfo(first.dtype).eps ** 0.5 * max(1.0, float(first.abs().max()))
    return bool((first.log_softmax(-1) - second.log_softmax(-1)).abs().max() <= allowed)
