"""What becomes of acknowledged predictions when things break, and of good answers when there are too many."""
