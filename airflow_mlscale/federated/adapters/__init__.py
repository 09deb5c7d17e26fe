"""Where the engine touches the world: network, disk, processes."""
