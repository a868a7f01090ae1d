"""What the figures look like: tables for a terminal and for Markdown."""
