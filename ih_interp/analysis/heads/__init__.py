"""Scores of single heads, from attention patterns and from weights.

Pattern scores
    pattern_scores: Apply a score of your own to every layer's pattern, 1,024 sequences at a time.
    head_table: Return scores by name as one table, as `plots.plot_head_scores` draws it.
Attention patterns
    induction_strength: Return attention to the correct labels minus to the others, in [-1, 1].
    previous_token_score: Return the mean attention from a token to the one before it, in [0, 1].
    current_token_score: Return the mean attention from a token to itself, in [0, 1].
    duplicate_token_score: Return the mean attention from a token to its earlier copies, in [0, 1].
    attention_entropy: Return the entropy of the pattern's last row, the query's, in nats.
    previous_token_chance: Return the score of a head that attends evenly.
    current_token_chance: Return the score of a head that attends evenly, the same number.
    duplicate_token_chance: Return the score of even attention.
    entropy_chance: Return the entropy of even attention from the last row.
Repeated tokens
    induction_score: Return attention to the successor of a token's copy on `[BOS,] r, r`.
    prefix_matching_score: Return attention to what followed a token's last occurrence.
    induction_chance: Return the score of even attention under the same convention.
    prefix_matching_chance: Return the score of even attention.
Composition
    composition_scores: Return composition after Elhage et al., in [0, 1].
    output_composition: Return composition of output with input matrices, in [0, 1].
    composition_chance: Return `composition_scores` of Gaussian matrices of the model's shapes.
    output_composition_chance: Return `output_composition` of such matrices.
Copying
    copying_score_eig: Return `sum of Re lambda / sum of |lambda|` of a head's OV circuit.
    copying_score_diag: Return where a token's own logit stands in its row of `W_E W_V W_O W_U`.
    copying_score_logit: Return the share of a raise of logits that the token attended to gets.
    copying_logit_chance: Return the score of a head that raises all tokens of a sequence alike.
    label_copying: Return what attending to a label adds to the logits, by weights.
    label_copying_of_values: Return what attending to a label adds to the logits, by values.
    label_copying_score: Return the mean diagonal of such a matrix minus the mean of the rest.
Matching
    qk_matching: Return how often a token's own key scores above another's, in [0, 1].
    induction_trace: Return the trace of matching, summed over previous-token heads.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
