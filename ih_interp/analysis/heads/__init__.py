"""Scores of single heads, from attention patterns and from weights, and of the whole model."""

import lazy_loader

from ih_interp._contents import with_contents

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__doc__ = with_contents(__doc__, __file__)
