"""Many simulated runs against a real hub: what scripts/load runs, and what the tests that kill hubs send."""
