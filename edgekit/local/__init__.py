"""What a server on this machine needs to be safe from web pages and other users."""
