"""What leaves this process: without terminal escapes, credentials or personal data."""
