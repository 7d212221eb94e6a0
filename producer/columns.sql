-- The columns of a table by name, with the name of their type (of the base type, if it is a domain).
SELECT attribute.attname::text, COALESCE(base.typname, type.typname)::text
FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
JOIN pg_catalog.pg_attribute AS attribute ON attribute.attrelid = class.oid
JOIN pg_catalog.pg_type AS type ON type.oid = attribute.atttypid
LEFT JOIN pg_catalog.pg_type AS base ON base.oid = NULLIF(type.typbasetype, 0)
WHERE namespace.nspname = %(schema)s AND class.relname = %(table)s AND class.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND attribute.attnum > 0 AND NOT attribute.attisdropped
