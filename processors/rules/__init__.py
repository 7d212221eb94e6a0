"""The rules: what a row of audits becomes, or why it becomes nothing. Pure; `transform` has their order."""
