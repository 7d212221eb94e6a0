-- What a role sees of a table: its kind (pg_class.relkind), whether row-level security applies to this role, and which of
-- some columns it may not read.
SELECT class.oid::bigint, class.relkind::text, row_security_active(class.oid),
       ARRAY(SELECT named.name FROM unnest(%(columns)s::text[]) WITH ORDINALITY AS named (name, place)
             JOIN pg_catalog.pg_attribute AS attribute
               ON attribute.attrelid = class.oid AND attribute.attname = named.name AND NOT attribute.attisdropped
             WHERE NOT has_column_privilege(class.oid, attribute.attnum, 'SELECT')
             ORDER BY named.place),
       current_user::text
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
WHERE namespace.nspname = %(schema)s AND class.relname = %(table)s
