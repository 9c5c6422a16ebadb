"""Raw text to shards: corpora, sources/, readers/, units/; build.py is the whole line."""
