"""Checks: questions about an account, its copy or the rollout. Each reads only, and answers with a report."""
