"""Results over seeds as Markdown."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {deviation:.{digits}f}"


def interval(differences: Sequence[float]) -> str:
    """Mean of paired differences and its 95% interval (Student's t)."""
    mean, count = statistics.fmean(differences), len(differences)
    if count < 2:
        return f"{mean:+.2f}"
    half = student.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def p_value(differences: Sequence[float]) -> float | None:
    """Of the paired t-test, two-sided: how probable so large a mean is where there is no
    difference. None where it cannot be told: one seed, or equal differences."""
    count = len(differences)
    deviation = statistics.stdev(differences) if count > 1 else 0.0
    if deviation == 0.0:
        return None
    ratio = abs(statistics.fmean(differences)) / (deviation / math.sqrt(count))
    return float(2 * student.sf(ratio, count - 1))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; the first column to the left."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
