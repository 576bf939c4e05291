"""Leases: who has which items, who gives some back, and what a death or a timeout means for them."""
