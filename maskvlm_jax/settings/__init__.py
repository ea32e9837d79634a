"""What a config must satisfy, which workdir it belongs to, and the command line that gives it."""
