"""Who may bring an index, which images may be opened, and who signed what."""
