-- The newest id, and the transaction id that is given out next: every transaction that has one, and may still commit an id
-- up to `top`, has one below it. pg_snapshot_xmax is not that number, but the newest *completed* transaction's plus one:
-- what runs can lie above it. age() counts from the next one, needs no right, works on a standby (where it counts from the
-- newest that the log has named), and is evaluated after the snapshot was taken, in which `top` is read.
SELECT COALESCE(min(id), 0)::bigint, COALESCE(max(id), 0)::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
       + GREATEST(age(pg_snapshot_xmax(pg_current_snapshot())::xid), 0)
FROM {table}
