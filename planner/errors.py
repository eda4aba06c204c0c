"""Everything that can go wrong, and the exit code each kind of failure ends in.

    PlannerError
      InputError            1   a file, field or option the user gave is wrong
        TamperedArtifact    1   a file of an artefact is not the one its manifest lists
      Infeasible            3   no plan meets the limits; names the binding one
      VerificationFailed    4   the artefact ran and nothing, dense included, met the limits
      Regression            5   this machine is slower than its baseline allows
      InvalidSpace          70  a pass broke the rules of the representation: ours to fix

Exit code 2 (wrong usage) is click's own.
"""

from typing import ClassVar


class PlannerError(Exception):
    """A failure that is reported in one line and ends the command with `exit_code`."""

    exit_code: ClassVar[int] = 1


class InputError(PlannerError):
    """What the user gave cannot be used; the message says where, what was found and what would do."""


class TamperedArtifact(InputError):
    """A file of an artefact is missing, or differs from the sha256 in its manifest."""


class Infeasible(PlannerError):
    """No plan meets the limits; the message names the binding limit and the nearest feasible plan."""

    exit_code = 3


class VerificationFailed(PlannerError):
    """The artefact was run and does not keep what the plan promised."""

    exit_code = 4


class Regression(PlannerError):
    """What was measured is worse than a baseline by more than was tolerated."""

    exit_code = 5


class InvalidSpace(PlannerError):
    """A pass produced something the representation forbids; the message names the pass."""

    exit_code = 70
