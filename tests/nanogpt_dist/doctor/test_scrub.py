"""A text that goes to strangers has no secret in it, and is else as it was."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_dist.doctor.scrub import (
    AS_FLAG,
    ASSIGNED,
    GONE,
    HEADER,
    IN_ADDRESS,
    IN_QUERY,
    KEYS,
    NETRC,
    OF_CURL,
    is_secret_name,
    known_secrets,
    scrub_text,
    scrub_values,
)

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("proxy http://bob:hunter2@host:80/x", "hunter2"),
        ("git+https://ghostoken@host/repo", "ghostoken"),
        ("postgres://u:p%40ss@db/x", "p%40ss"),
        ("https://s3/x?X-Amz-Signature=abcdef12&a=1", "abcdef12"),
        ("https://blob/x?sv=1&sig=AbC%2Fdef", "AbC%2Fdef"),
        ("logged in with hf_ABCDefghijklmnop", "hf_ABCDefghijklmnop"),
        (f"wandb login {HEX}", HEX),
        ("key AKIAIOSFODNN7EXAMPLE used", "AKIAIOSFODNN7EXAMPLE"),
        ("ghp_abcdefghij0123456789 pushed", "ghp_abcdefghij0123456789"),
        ("sk-proj-abcdefghij0123456789", "sk-proj-abcdefghij0123456789"),
        ("Authorization: Bearer abcdefghijkl", "abcdefghijkl"),
        ("Authorization: Basic Ym9iOmh1bnRlcjI=", "Ym9iOmh1bnRlcjI="),
        ('{"wandb_api_key": "qwertyuiop"}', "qwertyuiop"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
        ("MY_PASSWORD=correcthorse nanogpt train", "correcthorse"),
        ("run --hub-token zzzzyyyy --max-iters 5", "zzzzyyyy"),
        ("machine api.wandb.ai login user password sesame99", "sesame99"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "eyJzdWIiOiIxIn0"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "MIIabc"),
        ("-----BEGIN PRIVATE KEY-----\nMIIabc cut off", "MIIabc"),
        (r'{"note": "{\"api_key\": \"qwer tyuiop\"}"}', "tyuiop"),
        (r'{"x": "{\"y\": \"{\\\"password\\\": \\\"qwer tyuiop\\\"}\"}"}', "tyuiop"),
        ('password="a hunter2"', "hunter2"),
        ("password: '12345678'", "12345678"),
        ("password=12345678", "12345678"),
        ('password="never ends, hunter2', "hunter2"),
        ("Authorization: Token abcdef", "abcdef"),
        ("Authorization: Digest username=bob, response=abcdef", "abcdef"),
        ("Set-Cookie: a=b; session=abcdef; Path=/", "abcdef"),
        ('{"hub_token": ["abcdef"]}', "abcdef"),
        ('{\n "hub_token": [\n  "abcdef"\n ]\n}', "abcdef"),
        ("curl -u bob:abcdef https://host/x", "abcdef"),
        ("curl --user 'bob:abcdef' https://host/x", "abcdef"),
        ("AccountName=a;AccountKey=abc+def/==;Suffix=x", "abc+def"),
        ("DB_PWD=hunter2", "hunter2"),
        ("token: |\n  abcdef\n  ghijkl\nnext: 1", "ghijkl"),
    ],
)
def test_what_looks_like_a_secret_is_gone(text: str, secret: str) -> None:
    scrubbed = scrub_text(text)
    assert secret not in scrubbed
    assert GONE in scrubbed


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 10, "tokens": 81920, "tokens_per_second": 1234.5, "batch_tokens": 512}',
        'tokenizer = "bpe:8192"',
        "nanogpt_dist/interop/hf_tokenizer.py, line 12",
        "dataset_id " + 64 * "a",
        "see https://huggingface.co/openai-community/gpt2 and user notes at 12:30",
        "loss 3.2891 · lr 1.00e-02 · norm 1.03 · 13,083 tokens/s",
        '{"token": 5, "secret": null}',
    ],
)
def test_what_does_not_stays(text: str) -> None:
    assert scrub_text(text) == text


@pytest.mark.timeout(100)  # of some seconds; a pattern with more steps for each character: hours
def test_no_text_takes_long() -> None:
    pieces = [".", "-", "--a", "a.", "eyJ", "?token", "--token", "token=[", "token\n", "token:|\n "]
    pieces += ["://", "machine a login ", "hf_", "-u ", "-ua", "sk-", "-----BEGIN ", '\\"', "a="]
    for piece in pieces:
        line = piece * (4000 // len(piece))
        scrub_text("\n".join(20 * [line]))
        assert len(scrub_text((300_000 // len(piece)) * piece)) < 300_000 + 100
        for pattern in (ASSIGNED, AS_FLAG, IN_QUERY, KEYS, OF_CURL, HEADER, NETRC, IN_ADDRESS):
            pattern.sub("", piece * (100_000 // len(piece)))


def test_a_long_line_is_cut_between_words() -> None:
    scrubbed = scrub_text(f"first\n{4090 * 'x'} hf_ABCDefghijklmnop\nlast")
    assert scrubbed == f"first\n{4090 * 'x'}  … cut off\nlast"


words = st.text(st.characters(blacklist_characters="*", blacklist_categories=("Cs",)))


@given(before=words, secret=words.filter(lambda text: len(text.strip()) >= 6), after=words)
def test_a_known_secret_is_gone_wherever_it_stands(before: str, secret: str, after: str) -> None:
    secret = secret.strip()
    assert secret not in scrub_text(before + secret + after, [secret])
    assert secret not in str(scrub_values({before: [{"x": secret + after}]}, [secret]))


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "SLURM_JWT", "MYSQL_PWD", "my_pat"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "PWD", "OLDPWD", "NCCL_DEBUG", "HF_HOME"]
)
def test_names_of_others(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_are_known_from_variables_and_files(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine h login bob password fromnetrc\n")
    (tmp_path / ".aws").mkdir()
    lines = "[default]\naws_access_key_id = fromawsid\naws_secret_access_key = fromaws/key\n"
    (tmp_path / ".aws/credentials").write_text(lines)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/token").write_text("fromtokenfile\n")
    variables = {
        "X_SECRET": "fromvariable",
        "HTTP_PROXY": "http://bob:fromproxy@h",
        "A": "harmless",
    }
    known = known_secrets({**variables, "HF_HOME": "~/hub"}, tmp_path)
    expected = {
        "fromnetrc",
        "fromawsid",
        "fromaws/key",
        "fromtokenfile",
        "fromvariable",
        "fromproxy",
    }
    assert known == expected


def test_a_home_and_a_user_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    from nanogpt_dist.doctor import scrub

    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("LOGNAME", "alice")
    scrub._home_and_user.cache_clear()
    try:
        text = scrub_text("/home/alice/out, /home/alice-2, /scratch/alice/x, alice@host, malice")
    finally:
        scrub._home_and_user.cache_clear()
    assert text == "~/out, /home/alice-2, /scratch/USER/x, USER@host, malice"
