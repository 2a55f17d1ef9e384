from .attention import (
    attention_entropy as attention_entropy,
    current_token_chance as current_token_chance,
    current_token_score as current_token_score,
    duplicate_token_chance as duplicate_token_chance,
    duplicate_token_score as duplicate_token_score,
    entropy_chance as entropy_chance,
    first_token_chance as first_token_chance,
    first_token_score as first_token_score,
    induction_strength as induction_strength,
    previous_token_chance as previous_token_chance,
    previous_token_score as previous_token_score,
)
from .composition import (
    composition_chance as composition_chance,
    composition_scores as composition_scores,
    output_composition as output_composition,
    output_composition_chance as output_composition_chance,
)
from .copying import (
    copying_logit_chance as copying_logit_chance,
    copying_score_diag as copying_score_diag,
    copying_score_eig as copying_score_eig,
    copying_score_logit as copying_score_logit,
    label_copying as label_copying,
    label_copying_of_values as label_copying_of_values,
    label_copying_score as label_copying_score,
)
from .in_context import in_context_score as in_context_score, loss_by_position as loss_by_position
from .matching import induction_trace as induction_trace, qk_matching as qk_matching
from .pattern_scores import head_table as head_table, pattern_scores as pattern_scores
from .repeated_tokens import (
    induction_chance as induction_chance,
    induction_score as induction_score,
    prefix_matching_chance as prefix_matching_chance,
    prefix_matching_score as prefix_matching_score,
    repeated_tokens as repeated_tokens,
)
