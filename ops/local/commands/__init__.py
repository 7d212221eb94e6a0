"""What `crm-replay` does, where no other package has the command; imported when a command is called."""
