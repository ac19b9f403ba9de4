"""What an estimate looks like: a value and how sure it is."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A point estimate with its uncertainty.

    Attributes:
      estimate: the value.
      se: its standard error.
      ci: lower and upper end of the confidence interval.
      pvalue: two-sided, of the value 0; None where the method gives none.
      n: how many observations (pairs, for a paired comparison).
      level: of the interval.
      method: how it was made.
    """

    estimate: float
    se: float
    ci: tuple[float, float]
    pvalue: float | None
    n: int
    level: float
    method: str


def check_level(level: float) -> None:
    """A confidence level is a number strictly between 0 and 1.

    Raises:
      ValueError: it is not; names `level`.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: {level} is outside (0, 1); write 0.95 for 95 %")
