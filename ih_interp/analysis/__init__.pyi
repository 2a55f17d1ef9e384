from . import ablation as ablation, dynamics as dynamics, heads as heads, patching as patching
