"""Web assets: `console/` for operators, `embed/` for the customer page. Served as they are, without a build step."""
