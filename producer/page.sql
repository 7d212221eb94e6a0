-- One page of the account's rows in id order, within a window of ids: a sparse account must not make a page scan the
-- whole table. Only the columns that are read: the role may have no privilege on the others.
WITH audit AS (
    SELECT id, created_at, auditable_type, auditable_id, associated_type, associated_id, user_type, user_id, username,
           action, audited_changes, version, comment, request_uuid, {owner} AS owner
    FROM {table}
    WHERE id > %(cursor)s AND id <= %(window_end)s
      AND auditable_type = ANY(%(scope)s::text[]) AND {since} AND {account}
    ORDER BY id LIMIT %(page_rows)s
)
