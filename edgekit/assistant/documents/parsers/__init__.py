"""One module per format: bytes in, blocks of text with headings, pages and lines out."""
