-- The newest id, and the first transaction id that had not been given out, in one and the same snapshot: whoever commits
-- an id up to `top` later has a transaction id below `xmax`.
SELECT COALESCE(min(id), 0)::bigint, COALESCE(max(id), 0)::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM {table}
