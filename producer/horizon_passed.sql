-- Whether every transaction below `xmax` has ended.
SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= %(xmax)s
