"""A training run.

loop.py           the run in the order of time
step.py           one step: forward, backward, clip, optimizer
optim.py          the optimizer, its state and how large that is
groups.py         which parameter goes by which rule, and at which rate
adamw.py          AdamW; muon.py: Muon for the blocks' matrices, beside it
orthogonalize.py  the orthogonal matrix that Muon steps along
schedule.py       the learning rate of each step
ema.py            weights averaged over the steps
saver.py          when and what is saved, beside the training where there is room
disk_room.py      whether the disk has room for what will be saved
resume.py         where a run goes on, and whether it may
decay.py          longer wsd runs, and decays that branch off one
crash_loops.py    stop after repeated crashes
spikes.py         a loss that stands out of those before; roll_back.py: back, and on without
progress.py       what a run tells while it goes on
samples.py        the same prompts, continued again and again
telemetry.py      what the time between two logged steps went to
own_work.py       how long a rank works by itself; stragglers.py: which one the others wait for
gpu_sensors.py    a GPU's temperature and clock
metrics.py        metrics.jsonl, samples.jsonl, TensorBoard, the console; wandb.py: Weights & Biases
check_resume.py   the proof that stopping and resuming changes no bit
replicas.py       copies of the weights that differ; recheck_step.py: a logged step again
"""
