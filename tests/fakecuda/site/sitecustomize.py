"""What Python runs as it starts, where this folder is on PYTHONPATH: the fake GPU anywhere."""

import os

if os.environ.get("FAKECUDA"):
    from tests.fakecuda import hooks

    hooks.install()
