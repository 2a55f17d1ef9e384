"""Models with random weights in double precision, for laws that must hold exactly."""

import torch
from transformer_lens.components import LayerNormPre, RMSNormPre

from ih_interp.model import ModelConfig, build_model


def randomised(model, seed=0):
    """All weights drawn anew, biases and norms too, so that nothing is accidentally zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim < 3 else 1.5 / parameter.shape[1] ** 0.5
            if name == "embed.W_in":  # features are long vectors: attention must not saturate
                scale = 0.03
            parameter.add_(scale * noise) if name.endswith(".w") else parameter.copy_(scale * noise)
    return model


def made(task, **fields):
    shape = {"n_layers": 2, "d_model": 16, "n_heads": 3, "d_head": 4, **fields}
    return doubled(randomised(build_model(task, ModelConfig(**shape))))


def doubled(model):
    model.cfg.dtype = torch.float64  # to which norms cast what they give
    return model.double()


def with_norm(model, kind):
    """The same weights with another normalisation, those that `ModelConfig` does not offer."""
    norm = {"LNPre": LayerNormPre, "RMSPre": RMSNormPre}[kind]
    for block in model.blocks:
        block.add_module("ln1", norm(model.cfg))
        if not model.cfg.attn_only:
            block.add_module("ln2", norm(model.cfg))
    model.add_module("ln_final", norm(model.cfg))
    model.setup()
    return model


def state_of(model):
    return {
        name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(getattr(m, "fwd_hooks", ())))
        for name, m in model.named_modules()
    }
