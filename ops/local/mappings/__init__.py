"""Source mapping files of the sample CRM and of the generated one."""
