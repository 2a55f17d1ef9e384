"""Measures of trained models: what heads do, who feeds whom, and when that came about."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
