"""What the systems of GPT-2's lineage write, taken over and handed on.

source.py         what --init-from names: a folder or a repository of the hub, and which architecture it has
huggingface.py    GPT2LMHeadModel's weights, in and out
hf_tokenizer.py   tokenizer.json and its kin, in and out
adopting.py       foreign weights become a run
nanogpt.py        nanoGPT's ckpt.pt, in and out
recipes.py        nanoGPT's config/*.py, read as literals
pickles.py        nanoGPT's meta.pkl, read without executing anything
llmc.py           llm.c's weight and tokenizer files, out
"""  # noqa: E501
