"""What operators use: command line, control plane, runner, checks. No other package imports it."""
