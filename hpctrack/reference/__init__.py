"""The generated pages of docs/reference: every key of the configuration, and every verb with its options.

`python -m hpctrack.reference docs/reference` writes them.
"""
