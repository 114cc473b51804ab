"""Where models run. Backends know inductions as data, never methods."""
