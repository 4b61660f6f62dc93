"""One filler shared by threads, processes, awaits and a server."""
