-- Ids in (cursor, scanned_to] without a row of any type or account, as intervals in ascending order. They belong to
-- transactions that were rolled back, to deleted rows, or to transactions that have yet to commit.
SELECT before + 1, id - 1
FROM (
    SELECT id, lag(id, 1, %(cursor)s::bigint) OVER (ORDER BY id) AS before
    FROM (
        SELECT id::bigint FROM {table} WHERE id > %(cursor)s AND id <= %(scanned_to)s
        UNION ALL
        SELECT %(scanned_to)s::bigint + 1
    ) AS ids
) AS neighbours
WHERE id > before + 1
ORDER BY id
