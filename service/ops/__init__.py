"""The operations page: what it shows, its pictures, what to label next, and the page itself."""
