"""The report page of runs: one HTML file that works offline.

`ih.report` makes it. `subject` says what is measured of a run, `scores`, `wiring`, `ablation` and
`patterns` measure it by the package's functions, `heads` says which heads matter, and `contents`
puts tables and figures together for the template.
"""
