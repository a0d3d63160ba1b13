"""The web pages: read runs, also while others write them, and change nothing."""
