"""Repositories for the hub of the tests: folders of the shape that real data sets have."""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LFS = (".parquet", ".arrow", ".safetensors")  # endings of what the hub keeps in LFS

EXPORT = "refs--convert--parquet"  # the hub's export, as a folder beside `main`


@dataclass
class Entry:
    path: Path
    size: int
    sha256: str
    blob_id: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def told(self, name: str) -> dict[str, Any]:
        lfs = (
            {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.lfs else {}
        )
        return {"type": "file", "oid": self.blob_id, "size": self.size, "path": name, **lfs}

    def sibling(self, name: str) -> dict[str, Any]:
        """As the facts about a whole repository have it, with ?blobs=true."""
        lfs = (
            {"lfs": {"sha256": self.sha256, "size": self.size, "pointerSize": 134}}
            if self.lfs
            else {}
        )
        return {"rfilename": name, "blobId": self.blob_id, "size": self.size, **lfs}


@dataclass
class Revision:
    sha: str
    files: dict[str, Entry]


def read_revision(tree: Path, lfs: tuple[str, ...]) -> Revision:
    """What is in the folder of a revision; its commit follows from that."""
    files = {}
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        data = path.read_bytes()
        blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        name = path.relative_to(tree).as_posix()
        files[name] = Entry(
            path, len(data), hashlib.sha256(data).hexdigest(), blob_id, name.endswith(lfs)
        )
    listing = json.dumps([tree.name, *((name, entry.sha256) for name, entry in files.items())])
    return Revision(hashlib.sha1(listing.encode()).hexdigest(), files)


README = """---
annotations_creators:
- no-annotation
language:
- en
license:
- cc0-1.0
pretty_name: OpenWebText
dataset_info:
  config_name: plain_text
  features:
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: {bytes}
    num_examples: {documents}
  download_size: {download}
  dataset_size: {bytes}
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  default: true
---

# Dataset Card for "openwebtext"
"""

WORDS = (
    "the of and to in that was it for is on as with his he be at by had not are but from they "
    "which you one we all their there been has when who would more if no out so said what up its "
    "about into than them can only other new some could time these two may then do first any my "
    "now such like our over man even most made after also did"
)


def english(documents: int, seed: int) -> list[str]:
    """Texts of sentences and paragraphs, equal for equal seeds."""
    choose, words = random.Random(seed), WORDS.split()
    texts = []
    for _ in range(documents):
        sentences = [
            " ".join(choose.choices(words, k=choose.randint(4, 18)))
            for _ in range(choose.randint(2, 20))
        ]
        texts.append("\n\n".join(f"{sentence.capitalize()}." for sentence in sentences))
    return texts


def make_openwebtext(
    root: Path,
    documents_per_file: int = 200,
    files: int = 3,
    repo: str = "Skylion007/openwebtext",
    script: bool = False,
) -> list[str]:
    """Writes a repository of openwebtext's shape, and returns its documents in order.

    script: `main` has a loading script, as it had for years, and the parquet files stand in the
    hub's export only.
    """
    import pyarrow as pa
    from pyarrow import parquet

    main, texts = root / repo / "main", []
    folder = root / repo / EXPORT / "plain_text" / "train" if script else main / "plain_text"
    folder.mkdir(parents=True)
    for number in range(files):
        some = english(documents_per_file, number)
        name = f"{number:04}.parquet" if script else f"train-{number:05}-of-{files:05}.parquet"
        parquet.write_table(
            pa.table({"text": some}), folder / name, row_group_size=max(1, documents_per_file // 4)
        )
        texts += some
    main.mkdir(exist_ok=True)
    readme = README.format(
        bytes=sum(len(text.encode()) for text in texts),
        documents=len(texts),
        download=sum(path.stat().st_size for path in folder.iterdir()),
    )
    if script:
        (main / "openwebtext.py").write_text(
            "import datasets\n\n\nclass Openwebtext(datasets.GeneratorBasedBuilder): ...\n"
        )
        readme = "# openwebtext\n"
    (main / "README.md").write_text(readme, encoding="utf-8")
    return texts


# Of the catalogue's other repositories: where the files of the configuration lie, and how its
# documents are written.
OTHERS = {
    "HuggingFaceFW/fineweb": ("sample-10BT", "sample/10BT/000_00000.parquet"),
    "HuggingFaceFW/fineweb-edu": ("sample-10BT", "sample/10BT/000_00000.parquet"),
    "roneneldan/TinyStories": ("default", "data/train-00000-of-00001.parquet"),
    "Salesforce/wikitext": (
        "wikitext-103-raw-v1",
        "wikitext-103-raw-v1/train-00000-of-00001.parquet",
    ),
    "allenai/c4": ("en", "en/c4-train.00000-of-01024.json.gz"),
}


def make_catalogue(root: Path, documents: list[str]) -> None:
    """Writes the repositories of the catalogue, each in its own shape, with these documents."""
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    for repo, (config, name) in OTHERS.items():
        path = root / repo / "main" / name
        path.parent.mkdir(parents=True)
        if name.endswith(".parquet"):
            parquet.write_table(
                pa.table({"text": documents, "url": ["http://a.b"] * len(documents)}), path
            )
        else:
            lines = "".join(
                json.dumps({"text": text, "url": "http://a.b"}) + "\n" for text in documents
            )
            path.write_bytes(gzip.compress(lines.encode()))
        files = f"  - split: train\n    path: {name.rpartition('/')[0]}/*train*\n".replace(
            "10BT/*train*", "10BT/*"
        )
        card = (
            f"---\nconfigs:\n- config_name: {config}\n  default: true\n  "
            f"data_files:\n{files}---\n\n# {repo}\n"
        )
        (root / repo / "main" / "README.md").write_text(card)
