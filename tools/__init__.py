"""The command line, which composes everything and which nothing imports."""
