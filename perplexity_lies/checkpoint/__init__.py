"""From a name to a checkpoint that can be loaded: files, a hub snapshot, a built-in one, or the address of a server."""
