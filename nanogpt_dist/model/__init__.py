"""The model, and what computes its parts.

gpt.py                        GPT-2 in reading order: attention → MLP → block → GPT
embedding.py                  bigrams, smear and value embeddings, which GPT-2 has not
attention.py                  one signature of attention; SDPA, Flex, CPU and cache side by side
positions.py                  position ids, rotary angles, masks
initial_weights.py            the first values of each weight
kernels.py                    which attention and loss a model is given
fp8.py                        linear layers whose products are in float8
head_loss.py                  the head's loss, without giving its logits away
cpu_kernels.py                attention and loss written for CPUs
cpu_elementwise.py            rotary positions and squared ReLU written for CPUs
activation_checkpointing.py   which activations a block keeps
"""
