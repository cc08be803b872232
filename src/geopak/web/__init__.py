"""The page and the API that ``python -m geopak.app`` serves."""
