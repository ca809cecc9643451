"""What the operations page costs: its data, its first paint, and the service beside ten of them."""
