"""The tuneline command: what it reads, what it starts and what it shows."""
