-- What is kept of a row that is too large for the topic: the beginning of its changes and comment, and their sizes.
SELECT left(changes, %(kept)s), left(remark, %(kept)s), octet_length(changes), octet_length(remark)
FROM (
    SELECT COALESCE(audited_changes::text, '') AS changes, COALESCE(comment, '')::text AS remark
    FROM {table} WHERE id = %(id)s
) AS large
