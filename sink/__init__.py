"""WRITES: outcomes topic -> MongoDB's activity logs, once per external_id, with every record accounted for."""
