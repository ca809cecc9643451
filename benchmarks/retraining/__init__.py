"""What a retrain costs, and what it costs the service beside it."""
