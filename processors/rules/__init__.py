"""The rules: what a row of audits becomes, or why it becomes nothing. Pure; `decide` has their order."""
