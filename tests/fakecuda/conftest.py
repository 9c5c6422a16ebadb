"""Commands on the fake GPU and beside it, and a small corpus of many documents."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import build, write_jsonl
from tests.fakecuda.server import Done, Server


@pytest.fixture(scope="session")
def cpu_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """As `server`, where there is no GPU: what the fake one is compared with."""
    server = Server(lambda **_: {}, tmp_path_factory.mktemp("commands_on_cpu"))
    yield server
    server.close()


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
