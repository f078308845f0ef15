"""Tools to measure and test with: the emulated link and whole systems on loopback."""
