"""What can go wrong that a caller may want to catch by name."""


class NonFiniteLossError(ArithmeticError):
    """A loss is NaN or infinite, so no derivative of it means anything."""


class BatchCouplingError(ValueError):
    """A sample's loss depends on the other samples of its batch, or on chance: no per-sample loss exists."""


class CorruptFileError(ValueError):
    """A file of a run is damaged."""


class DataError(ValueError):
    """A data set cannot be used as it is: unknown, absent, unreadable, or not what its name promises."""


class MissingSplitError(DataError):
    """A data set is there, but not this split of it."""


class DataChangedError(DataError):
    """A later pass over the data brought other samples than the first."""
