"""Pages that `stofm report` writes: one file of HTML each, script and data inside, nothing fetched."""
