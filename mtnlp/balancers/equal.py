"""Every task counts the same: the sum of the tasks' mean losses. The baseline that the others must beat."""

from __future__ import annotations

from mtnlp import balancers
from mtnlp.balancers.base import Balancer


@balancers.register("equal")
class Equal(Balancer):
    """Sum of the tasks' mean losses, whatever their number of examples in the step."""
