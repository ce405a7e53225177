"""Integrations with trainers; they use `ddphub.run` alone."""
