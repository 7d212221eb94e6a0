"""What browsers get: `console/` for operators, `embed/` for the customer page. No build step: served as it is here."""
