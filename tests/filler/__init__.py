"""One filler under many threads, processes and awaits, and behind a server."""
