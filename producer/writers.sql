-- The virtual transactions that may have drawn an id and have no transaction id yet. An INSERT locks the table before it
-- draws, nextval() locks the sequence, and both locks are held until the transaction's end. Locked can be the table, its
-- partitions or what it is a partition of, what a view reads, or the sequence of any of them. A standby does not see them.
WITH RECURSIVE related (oid) AS (
    SELECT class.oid FROM pg_class AS class JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
    WHERE namespace.nspname = %(schema)s AND class.relname = %(relation)s
    UNION
    SELECT edge.oid FROM related CROSS JOIN LATERAL (
        SELECT inhrelid FROM pg_inherits WHERE inhparent = related.oid
        UNION ALL
        SELECT inhparent FROM pg_inherits WHERE inhrelid = related.oid
        UNION ALL
        SELECT depend.refobjid FROM pg_rewrite AS rule
        JOIN pg_depend AS depend ON depend.classid = 'pg_rewrite'::regclass AND depend.objid = rule.oid
            AND depend.refclassid = 'pg_class'::regclass
        WHERE rule.ev_class = related.oid
        UNION ALL
        SELECT depend.refobjid FROM pg_attrdef AS value
        JOIN pg_depend AS depend ON depend.classid = 'pg_attrdef'::regclass AND depend.objid = value.oid
            AND depend.refclassid = 'pg_class'::regclass
        WHERE value.adrelid = related.oid
        UNION ALL
        SELECT depend.objid FROM pg_depend AS depend JOIN pg_class AS owned ON owned.oid = depend.objid
        WHERE depend.refobjid = related.oid AND depend.refclassid = 'pg_class'::regclass
            AND depend.classid = 'pg_class'::regclass AND owned.relkind = 'S'
    ) AS edge (oid)
)
SELECT DISTINCT virtualtransaction FROM pg_locks
WHERE relation IN (SELECT oid FROM related) AND granted AND pid IS DISTINCT FROM pg_backend_pid()
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND NOT pg_is_in_recovery()
