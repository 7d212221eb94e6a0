"""The live feed on this host: its processes, and the CDC connector that fills its topic."""
