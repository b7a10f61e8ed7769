"""Inside a training loop of your own: figures of its gradient noise, a knob for it, and what batch size to take.

The public names and where they live are listed in ``__init__.pyi``. Lightning and transformers are imported only
when their callback is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
