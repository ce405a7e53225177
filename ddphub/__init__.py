"""placeholder, replaced by the public names."""

__version__ = "0.1.0"
