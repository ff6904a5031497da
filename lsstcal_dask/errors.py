"""The errors a user can meet: each names its culprit and the remedy in one line."""

__all__ = [
    "CalibrationError",
    "DegenerateSolution",
    "InconsistentGeometry",
    "InsufficientInputs",
    "OutsideValidity",
    "StaleCalibration",
    "StoreFailure",
    "UnitsError",
    "WorkerLost",
    "WrongUse",
]


class CalibrationError(ValueError):
    """Bad input that stops a product, a frame or a command.

    The message is one line; it names the file or exposure, the detector and
    the amplifier where there is one, and says what to do.
    """


class InsufficientInputs(CalibrationError):
    """Too few exposures (or none) to make what was asked for."""


class InconsistentGeometry(CalibrationError):
    """Shapes, amplifiers or detectors that do not belong to the camera."""


class UnitsError(CalibrationError):
    """A quantity is missing, is not a number, or is in another unit."""


class DegenerateSolution(CalibrationError):
    """The inputs do not determine what was to be solved for."""


class StaleCalibration(CalibrationError):
    """No product of the wanted kind is valid for this detector and time."""


class OutsideValidity(StaleCalibration):
    """There is a product, but none that is valid at the time of the exposures."""


class WrongUse(CalibrationError):
    """A command or function was called with something that can never be right."""


class StoreFailure(CalibrationError):
    """The store does not answer, or what it holds is damaged: nothing is known of the data."""


class WorkerLost(CalibrationError):
    """A worker died while it worked on this: nothing is wrong with the data, and a re-run resumes."""
