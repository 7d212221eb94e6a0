"""The sample CRM: audit rows that the real gem wrote (README.md beside this file), and the CDP contacts for them."""
