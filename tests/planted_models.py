"""A model of two layers whose wiring is planted."""

import torch

import ih_interp as ih
from ih_interp.model import ModelConfig, build_model


def planted(reads):
    """Senders copy the previous exemplar, each into dimensions of its own; `reads[r]` lists whose
    dimensions receiver r takes for keys. Receivers find the query's class and write its label.
    """
    task = ih.FewShotTask(
        ih.Exemplars(torch.eye(3)[:, None]),
        ih.TaskConfig(n_train_classes=3, n_labels=3, held_out_labels=0.0),
    )
    shape = ModelConfig(
        d_model=15, n_heads=3, d_head=4, normalization_type=None,
        positional_embedding_type="standard",
    )  # fmt: skip
    model = build_model(task, shape)
    exemplar, label, *copied = torch.eye(15).split(3)
    to_head = torch.eye(4)[:3]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_in.copy_(exemplar)
        model.embed.W_label.copy_(label)
        below, above = (block.attn for block in model.blocks)
        for head in range(3):
            below.W_V[head] = exemplar.T @ to_head
            below.W_O[head] = to_head.T @ copied[head]
        for receiver, senders in reads.items():
            above.W_Q[receiver] = exemplar.T @ to_head * 4
            above.W_K[receiver] = sum(copied[sender] for sender in senders).T @ to_head
            above.W_V[receiver] = label.T @ to_head
            above.W_O[receiver] = to_head.T @ label
        model.unembed.W_U.copy_(label.T)
    clamp = ih.clamps.PreviousTokenAttention(heads=["L0H0", "L0H1", "L0H2"])
    return model, task.enumerate("train"), clamp
