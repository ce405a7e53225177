"""The self-hosted hub: `ddphub serve`."""
