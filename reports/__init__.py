"""How a comparison is shown: in a terminal (`terminal`), as figures (`figures`), as one HTML file (`html`).

Reports show the numbers of a `Comparison` and compute none. Rungs and sides come from the comparison and from the table of
rungs: no file here names one. Texts are read from the run directories through `perplexity_lies.read.texts`.
"""
