-- Whether the database enforces unique ids: by a unique index over id alone. A view has none, a table that others inherit
-- from has one for its own rows only, and a partitioned table has one over its partition key, too.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index AS index
    JOIN pg_catalog.pg_class AS class ON class.oid = index.indrelid
    JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
    JOIN pg_catalog.pg_attribute AS attribute ON attribute.attrelid = class.oid AND attribute.attnum = index.indkey[0]
    WHERE namespace.nspname = %(schema)s AND class.relname = %(relation)s AND attribute.attname = 'id'
      AND index.indisunique AND index.indisvalid AND index.indnkeyatts = 1 AND index.indpred IS NULL
      AND (class.relkind <> 'r' OR NOT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = class.oid))
)
