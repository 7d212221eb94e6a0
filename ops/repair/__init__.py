"""The repair of a copy: documents that a check has found wrong are deleted, rows that it has named are replayed."""
