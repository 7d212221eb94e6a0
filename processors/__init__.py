"""The processors: replay or live topic -> outcomes topic, exactly one outcome for every record."""
