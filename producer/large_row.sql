-- A row that is too large for a page: its changes and comment, or the beginning of each if they are too large for the
-- topic as well, and their sizes.
SELECT CASE WHEN octet_length(changes) + octet_length(remark) <= %(size_max)s THEN changes ELSE left(changes, %(kept)s) END,
       CASE WHEN octet_length(changes) + octet_length(remark) <= %(size_max)s THEN remark ELSE left(remark, %(kept)s) END,
       octet_length(changes), octet_length(remark), owner
FROM (
    SELECT COALESCE(audited_changes::text, '') AS changes, COALESCE(comment, '')::text AS remark, {owner} AS owner
    FROM {table} WHERE id = %(id)s
) AS large
