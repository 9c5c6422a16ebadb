"""Raw text to shards: corpora (the catalogue), documents (readers), encode (parallel), build (the
whole line).
"""
