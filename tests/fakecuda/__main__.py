"""`python -m tests.fakecuda train …` is `nanogpt train …` where there is the fake GPU."""

import os

from tests.fakecuda import hooks

os.environ.update(hooks.environment())  # the children have it, too
hooks.install()

from nanogpt_dist.__main__ import main  # noqa: E402

main()
