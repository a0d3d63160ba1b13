"""What people of mergekit already have: its merge YAML read and written, its evolve YAML read."""
