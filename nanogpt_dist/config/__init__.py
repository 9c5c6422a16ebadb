"""Every setting of a run, declared once: name, type, default, bounds and help.

Flags and TOML files come from here. Names are nanoGPT's where nanoGPT has them. `None` means off,
or, where the help says so, derived.

setting.py           how a setting is declared
model_config.py      ModelConfig, the architecture
data_config.py       first weights, data, the sequences of a step
optimizer_config.py  optimizer and schedule
output_config.py     evaluations, logs, checkpoints
machine_config.py    the machine, and several ranks
train_config.py      TrainConfig, all settings of a run
ramps.py             sequences of each step and their length, where these change during a run
resolve.py           values and TOML files → TrainConfig, and back
"""

from nanogpt_dist.config.model_config import BEYOND_GPT2, ModelConfig
from nanogpt_dist.config.resolve import read_toml, resolve, settings_where, to_run_toml, to_toml
from nanogpt_dist.config.setting import ALIASES, AUTO, PATH, OnResume, Scope, by_own_names, setting
from nanogpt_dist.config.train_config import ADDRESS, TrainConfig

__all__ = [
    "ADDRESS",
    "ALIASES",
    "AUTO",
    "BEYOND_GPT2",
    "PATH",
    "ModelConfig",
    "OnResume",
    "Scope",
    "TrainConfig",
    "by_own_names",
    "read_toml",
    "resolve",
    "setting",
    "settings_where",
    "to_run_toml",
    "to_toml",
]
