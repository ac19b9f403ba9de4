"""Losses and algorithms that train a policy under a contract.

`group_advantages` turns the rewards of several completions of a prompt into advantages, `policy_loss` is the
clipped surrogate of PPO and GRPO, `kl_estimate` says how far the policy has moved, `preference_loss` learns from pairs,
and `lagrangian` sets the price of each constraint. All are pure, return one number an example and leave the mean over
the batch (and over devices) to the caller.
"""

from ._advantages import group_advantages as group_advantages
from ._lagrangian import Lagrangian as Lagrangian
from ._lagrangian import LagrangianState as LagrangianState
from ._lagrangian import lagrangian as lagrangian
from ._policy import kl_estimate as kl_estimate
from ._policy import policy_loss as policy_loss
from ._preference import preference_loss as preference_loss
