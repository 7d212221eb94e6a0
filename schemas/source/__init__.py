"""How a CRM's rows are read: source mapping, a row's person, rules for contacts, `audited_changes`. Pure."""
