"""Documents out of files.

formats.py       which files are read; unsupported.py: what to type for others
documents.py     the documents of a part of a file, whatever its format
decompress.py    .gz and .zst
text.py          text in chunks that end where a word does
json_field.py    one field of a very long line
json_values.py   values of JSON over several lines, or in one array
tables.py        rows of .parquet and .arrow
"""
