"""What other programs write, read here, and written for them.

init_from.py        what --init-from names: a folder or a repository of the hub; its architecture
huggingface.py      GPT2LMHeadModel's weights, in and out
hf_tokenizer.py     tokenizer.json and its kin, in and out
model_card.py       the README.md of an export
import_run.py       foreign weights become a run
nanogpt_ckpt.py     nanoGPT's ckpt.pt, in and out
nanogpt_config.py   nanoGPT's config/*.py, read as literals
llmc.py             llm.c's weight and tokenizer files, out
"""
