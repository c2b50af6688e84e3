"""Every training method on the same rows: quality, memory and speed."""
