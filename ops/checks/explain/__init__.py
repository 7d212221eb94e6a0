"""`crm-replay explain`: the lineage of one source row, collected from every server."""
