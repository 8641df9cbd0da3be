"""Stand-ins for what a test machine lacks: a phone, its tool, a download server."""
