"""What people see of a run: lines, metrics, tables, sheets."""
