"""What every process does at its start: environment, connections, logs, traces, metrics, schema registry."""
