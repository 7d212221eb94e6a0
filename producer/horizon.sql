-- The newest id, and the next transaction id: every transaction that has one, and may still commit an id up to `top`, has
-- one below it. pg_snapshot_xmax is not that number, but the newest *completed* transaction's plus one: open transactions
-- can lie above it. age() counts from the next one, needs no privilege, works on a standby (where it counts from the newest
-- in the WAL), and is evaluated after the snapshot was taken, in which `top` is read.
SELECT COALESCE(min(id), 0)::bigint, COALESCE(max(id), 0)::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
       + GREATEST(age(pg_snapshot_xmax(pg_current_snapshot())::xid), 0)
FROM {table}
