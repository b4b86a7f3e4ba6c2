"""Every error that gmf-edge raises on purpose, and the exit status that each one ends the command line with.

GmfEdgeError                 1  a failure; the base of all
|-- SpecError                2  a request that cannot be meant: wrong size, unknown variant, contradictory options
|-- CheckpointError          1  weights that cannot be read, or do not fit the model
|-- DataError                1  images or labels that cannot be read or used
|-- ExportError              1  the model did not become a correct graph
|-- RewriteError             1  a graph rewrite changed the numbers, or found nothing to rewrite
|-- PrecisionError           1  weights or activations that do not fit the requested precision, or a request not honoured
|-- CalibrationError         1  calibration images or ranges that are missing, stale, foreign or unusable
|-- BundleError              1  a bundle that is damaged, incomplete or of another schema
|-- EngineError              1  an engine that could not be built, opened or run
|   `-- StaleArtifact        1  an engine or a cache made elsewhere or by another version
|-- PackageError             1  a package that cannot be made from a bundle, or that its reader would refuse
|-- KernelError              1  a kernel that could not be compiled, or does not fit the model or the device
|-- AccuracyError            3  parity or accuracy outside the gate
|-- RegressionError          5  compare: slower or less accurate than the other by more than was allowed
`-- EnvironmentProblem       4  this machine lacks something: a GPU, a driver, a package, disk space, write access

Each carries what is wrong (with the place, a file or a tensor name, in it) and a remedy: what to do next.
"""

from __future__ import annotations


class GmfEdgeError(Exception):
    """A failure with a remedy.

    Args:
        problem: what is wrong and where, one sentence without a full stop.
        remedy: what to do next, one sentence without a full stop.
    """

    exit_status = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class SpecError(GmfEdgeError):
    """A request that cannot be meant (exit status 2)."""

    exit_status = 2


class CheckpointError(GmfEdgeError):
    """Weights that cannot be read safely, or that do not fit the model."""


class DataError(GmfEdgeError):
    """Images or labels that cannot be read or used."""


class ExportError(GmfEdgeError):
    """The PyTorch model did not become a correct ONNX graph."""


class RewriteError(GmfEdgeError):
    """A rewrite changed the numbers, or a pattern that must be there was not found."""


class PrecisionError(GmfEdgeError):
    """Values that do not fit the requested precision, or a requested precision that was not honoured."""


class CalibrationError(GmfEdgeError):
    """Calibration images or ranges that are missing, stale, foreign or unusable."""


class BundleError(GmfEdgeError):
    """A bundle that is damaged, incomplete or of another schema version."""


class EngineError(GmfEdgeError):
    """An engine that could not be built, opened or run."""


class StaleArtifact(EngineError):
    """An engine or cache that was made on another device or by another version."""


class PackageError(GmfEdgeError):
    """A package that cannot be made from this bundle, or that the program which reads it would refuse."""


class KernelError(GmfEdgeError):
    """A GPU kernel that could not be compiled, or that does not fit the model or the device."""


class AccuracyError(GmfEdgeError):
    """Parity or accuracy outside the gate (exit status 3)."""

    exit_status = 3


class RegressionError(GmfEdgeError):
    """Slower or less accurate, by more than was allowed, than what it was compared with (exit status 5)."""

    exit_status = 5


class EnvironmentProblem(GmfEdgeError):
    """This machine lacks something that the request needs (exit status 4)."""

    exit_status = 4
