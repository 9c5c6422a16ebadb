"""Where the files of a corpus lie.

local.py       files, folders, patterns and standard input, found and hashed
hub.py         a repository of the hub: its files, pinned to a commit and checked
prefetch.py    the next files of the hub, fetched while one is read
files.py       both as one thing, of which units are read
own_files.py   what nanogpt has written itself, which is no text
"""
