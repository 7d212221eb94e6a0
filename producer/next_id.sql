-- The first id after an empty window, of any type and account: one step in the primary key's index.
SELECT id::bigint FROM {table} WHERE id > %(window_end)s AND id <= %(last)s ORDER BY id LIMIT 1
