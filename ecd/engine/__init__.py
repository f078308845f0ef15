"""Third-party inference engines, one file each."""
