"""What `nanogpt show`, `nanogpt compare` and `nanogpt watch` show.

components.py       what each component takes, gives and does
formulas.py         parameters counted by hand, without a model and without torch
architecture.py     components, shapes, parameters, counted from the model itself
diagram_text.py     the model as a drawing in the terminal; diagram_svg.py: as a picture
attention_head.py   one head: queries, keys, values, the mask, who attends to whom
run_record.py       a run folder, live or old, read from its files alone
standing.py         where a run stands now, in figures
text_plot.py        curves as text
compare_runs.py     settings that differ, losses at equal tokens
"""
