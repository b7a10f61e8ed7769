"""What can go wrong that a caller may want to catch by name."""


class NonFiniteLossError(ArithmeticError):
    """A loss is NaN or infinite, so no derivative of it means anything."""


class BatchCouplingError(ValueError):
    """A sample's loss depends on the other samples of its batch, or on chance: no per-sample loss exists."""
