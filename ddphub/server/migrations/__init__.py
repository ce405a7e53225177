"""The schema's history: applied in order when a hub starts."""
