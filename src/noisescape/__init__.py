"""The laboratory for gradient noise: measure it, shape it, and watch it escape sharp minima.

The public names and where they live are listed in ``__init__.pyi``; each is imported when it is first used, so that
``import noisescape`` does not wait for torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
