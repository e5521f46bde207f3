"""What several test files share: stands, worlds and small helpers. Not tests themselves."""
