"""The fixed Flower app behind every study."""
