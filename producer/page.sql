-- One page of the account's rows in id order, within a window of ids: a sparse account must not make a page scan the
-- whole table.
WITH audit AS (
    SELECT * FROM {table}
    WHERE id > %(cursor)s AND id <= %(window_end)s
      AND auditable_type = ANY(%(scope)s::text[]) AND created_at >= %(cutoff)s AND {account}
    ORDER BY id LIMIT %(page_rows)s
)
