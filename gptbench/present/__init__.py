"""What people see of records: the terminal, the report, exported tables."""
