"""The desktop assistant: a local web app over a child server, with history and documents."""
