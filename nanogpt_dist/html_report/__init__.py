"""Runs as one HTML file that needs nothing else: no network, no other file.

page.py         the whole file, from the records of one run or several
curves.py       what its charts draw: figures over steps, tokens and time, thinned
sections.py     its tables: where runs stand, settings, shares of time, environment
happenings.py   what happened: events, checkpoints, samples
markup.py       HTML of texts and tables, with everything escaped
report.css      how it looks; report.js: charts with hover, zoom and toggles
"""
