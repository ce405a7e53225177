"""What the script prints, for the hub to show: taken off the streams, made lines, freed of keys, bounded."""
