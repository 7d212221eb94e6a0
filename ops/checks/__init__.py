"""Checks of an account, its copy or the rollout. Each is read-only and returns a report."""
