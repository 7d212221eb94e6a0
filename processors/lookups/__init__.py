"""What the rules ask about a row: the reference tables, the user directory, and the answers made of them."""
