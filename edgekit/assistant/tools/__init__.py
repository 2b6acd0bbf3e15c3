"""Tools that the model may ask for: three of our own, and those of MCP servers by consent."""
