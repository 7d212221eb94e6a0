"""`crm-replay report`: the rollout's status over all accounts, its forecast, and the team that is next.

model   pure: accounts by state, burn-up, forecast, gates
render  pure: the same as Markdown, HTML with a chart, JSON
read    I/O: jobs, flags and preflights from the platform; the plan from a file
"""

from ops.checks.rollout.model import Rollout, rollout

__all__ = ["Rollout", "rollout"]
