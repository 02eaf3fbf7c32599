"""The site: hand-written pages (`*.md`), and the generator that sets them beside the pages of the library."""
