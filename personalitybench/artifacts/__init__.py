"""What fits leave: the store in the user's cache, and looking at it."""
