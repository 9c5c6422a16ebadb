"""Commands on the fake GPU and beside it, and a small corpus of many documents."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import build, write_jsonl
from tests.fork_server import Done, Server


@pytest.fixture
def gpu(server: Server, tmp_path: Path) -> Callable[..., Done]:
    """gpu(*arguments, ranks=0, code=0, **device): a command on the fake GPU, in an empty folder."""

    def run(*arguments: object, **how: object) -> Done:
        return server.run(*arguments, **{"folder": tmp_path, **how})  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def short_documents(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of documents of some 20 bytes: several of them in a window of 32."""
    folder = tmp_path_factory.mktemp("short")
    texts = [document[:20] for document in documents]
    source = write_jsonl(folder / "texts.jsonl", texts)
    build("text", folder / "data", sources=[source], tokenizer="byte", workers=1)
    return folder / "data"
