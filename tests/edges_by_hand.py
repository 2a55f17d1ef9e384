"""Edges by plain hooks on whole passes, slow and obvious, on padded prompts asked anywhere."""

import torch

import ih_interp as ih

LENGTHS = torch.tensor([9, 6, 7])


def prompts(seed=0, d_vocab=30):
    """Padded prompts of three lengths, asked at their last token and once before, with foils."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape, high=7):
        return torch.randint(0, high, shape, generator=generator)

    targets = torch.full((3, 9), -100)
    targets[range(3), LENGTHS - 1] = drawn(3)
    targets[range(3), [2, 0, 4]] = drawn(3)
    foils = torch.tensor([[1, 2], [3, -100], [0, 5]])
    return ih.Batch(drawn(3, 9, high=d_vocab), targets, lengths=LENGTHS, foils=foils)


CLEAN, CORRUPTED = prompts(0), prompts(1)


def score(logits, batch=CLEAN):
    """Each sequence's mean logit difference, position by position."""
    rows = []
    for i, row in enumerate(batch.targets):
        foils = [f for f in batch.foils[i].tolist() if f >= 0]
        places = [p for p, target in enumerate(row.tolist()) if target >= 0]
        each = [logits[i, p, row[p]] - logits[i, p, foils].mean() for p in places]
        rows.append(torch.stack(each).mean())
    return torch.stack(rows)


def run(model, batch, *hooks):
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model(batch.tokens)


def recorded(model, batch, name, *hooks):
    """One activation of a whole pass."""
    kept = []
    run(model, batch, *hooks, (name, lambda value, hook: kept.append(value.clone())))
    return kept[0]


def written(model, batch, head):
    layer, number = head
    z = recorded(model, batch, f"blocks.{layer}.attn.hook_z")[:, :, number]
    return z @ model.blocks[layer].attn.W_O[number]


def by_hand(model, sender, receiver, via):
    """The effect of one edge: three whole passes with hooks of TransformerLens."""
    change = written(model, CORRUPTED, sender) - written(model, CLEAN, sender)

    def added(value, hook):
        return value + change

    if receiver == "output":
        hooks = [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", added)]
    else:
        layer, number = receiver
        point = f"blocks.{layer}.attn.hook_{via}"
        new = recorded(model, CLEAN, point, (f"blocks.{layer}.hook_resid_pre", added))
        number = number * new.shape[2] // model.cfg.n_heads

        def put(value, hook):
            value = value.clone()
            value[:, :, number] = new[:, :, number]
            return value

        hooks = [(point, put)]
    return score(run(model, CLEAN, *hooks)) - score(run(model, CLEAN))


def edges(model):
    if model.cfg.n_layers == 1:
        return [((0, 1), "output", "q")]
    letters = [((0, 1), (2, 3), via) for via in "qkv"]
    return [*letters, ((1, 0), (2, 1), "k"), ((0, 2), (1, 0), "v"), ((0, 1), "output", "q")]
