"""How a comparison is shown: in a terminal (`terminal`), as figures (`figures`), as one HTML file (`html`).

Reports read a `Comparison` and nothing else: no run directory, no checkpoint. They compute no number of their own.
"""
