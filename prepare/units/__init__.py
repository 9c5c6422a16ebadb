"""The work, cut into units: each is encoded alone, by whoever is free, and put together in order.

plan.py         the units, by the sources alone
encode.py       one unit to ids
pool.py         units to workers, that may die; worker.py: one of them
schedule.py     which units this process takes; ranks.py: several processes at one folder
journal.py      what is done already
limits.py       how much is taken of what
split.py        what goes to train and to val
vocabulary.py   a tokenizer learnt from the text
assemble.py     units to shards
manifest.py     the manifest: made, and compared with one that is there
"""
