(  -- Whether a row's changes may name a column: a name that is not in the text literally is written with an escape or
    -- under a tag for base64. The cheap conditions come first.
    strpos(audited_changes::text, {column}) > 0 OR strpos(audited_changes::text, chr(92)) > 0
    OR strpos(audited_changes::text, '!') > 0 AND audited_changes::text ~ '![b<%%!]|%%TAG'
)
