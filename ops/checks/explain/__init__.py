"""`crm-replay explain`: the lineage of one source row, told from what each server says of it."""
