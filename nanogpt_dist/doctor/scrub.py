"""Secrets out of a text that goes to strangers: known values first, then what looks like one.

Too much may go, too little must not: a commit of 40 hexadecimal digits has the form of a key of
Weights & Biases, and goes, too.
"""

import configparser
import contextlib
import getpass
import json
import netrc
import os
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from nanogpt_dist.errors import IN_ADDRESS

GONE = "***"
SHORTEST = 6  # characters of a secret that is looked for wherever it stands
LONGEST = 4096  # characters of a line; what is beyond goes unread

# parts of names whose values are nobody's to see
SECRET_NAME = re.compile(
    r"(?i)(?:token|secret|passw(?:or)?d|passphrase|pwd|api_?-?key|access_?-?key|private_?-?key"
    r"|credential|auth|cookie|jwt|signature|dsn|(?:^|_)pat|(?:^|_)key)s?$"
    r"|token|secret|passw|credential|jwt"
)
HARMLESS_NAME = re.compile(
    r"(?i)tokenizer|tokens|parallelism|SSL_CERT|^(?:OLD)?PWD$|XAUTHORITY|SSH_AUTH_SOCK"
)

# What keys of the services look like that people use beside this. None of the patterns here takes
# longer than some steps for each character: they are bounded, or take all that they have looked at.
FORMS = [
    r"(?:hf|api_org)_(?=[A-Za-z]*[A-Z0-9])[A-Za-z0-9]{8,}",  # Hugging Face
    r"wandb_v\d_[\w-]{8,}",  # Weights & Biases; the older ones are hexadecimal
    r"(?<![0-9A-Za-z])[0-9a-fA-F]{40}(?:[0-9a-fA-F]{46})?(?![0-9A-Za-z])",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS
    r"gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}",  # GitHub, GitLab
    r"sk-[\w-]{16,}|xox[abeoprs]-[\w-]{8,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|nvapi-[\w-]{16,}",
    r"pypi-[\w-]{16,}|dckr_pat_[\w-]{16,}|npm_\w{16,}|lsv2_\w{16,}",
    r"eyJ[\w-]{8,}(?:\.[\w-]*){0,2}",  # a JSON web token
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:.|\n)*?"
    r"(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)",
]
KEYS = re.compile("|".join(FORMS))
IN_QUERY = re.compile(
    r"(?i)([?&;][\w-]{0,64}?"
    r"(?:token|sig|signature|key|secret|password|credential|code|auth)[\w-]{0,64}=)"
    r"[^&\s\"'<>#]+"
)
IN_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[\w+/.=~-]{8,}")
# up to the end of the line: a scheme with what follows it, several cookies
HEADER = re.compile(
    r"""(?i)((?:authorization|cookie)\\*["']?\s{0,8}[:=][ \t]{0,8})"""
    r"""(?!null\b|None\b|true\b|false\b)[^\n]+"""
)
ASSIGNED = re.compile(
    r"""(?i)((token|secret|passwd|password|passphrase|(?<![a-z])pwd|jwt|credentials?"""
    r"""|api[_-]?key|access[_-]?key(?:[_-]?id)?"""
    r"""|(?:private|account|shared|signing|master|session)[_-]?key)"""
    r"""\\*["']?\s{0,40}[:=]\s{0,40})"""
    r"""(\\+"[^"\n]*"""  # JSON in JSON
    r"""|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?"""
    r"""|\[[^\]]{0,4096}\]?"""  # a list
    r"""|[|>][-+\d]{0,2}[ \t]*(?:\n[ \t]+[^\n]*){1,40}"""  # a block of YAML
    r"""|(?!null\b|None\b|true\b|false\b)[^\s,;}\])"']+)"""
)
AS_FLAG = re.compile(
    r"(?i)((?<!-)--[\w-]{0,64}?"
    r"(?:token|secret|password|passwd|api-?key|access-?key|credential)[= ])"
    r"[^\s\"',}\]]+"
)
OF_CURL = re.compile(r"""(?<!\S)((?:-u|-U|--(?:proxy-)?user)[ =]?["']?)[^\s:"']+:[^\s"']+""")
NETRC = re.compile(r"(?i)\b(machine\s+\S+\s+login\s+)\S+(\s+password\s+)\S+")


def is_secret_name(name: str) -> bool:
    """Whether the value of a variable or a key of this name is nobody's to see."""
    return bool(SECRET_NAME.search(name)) and not HARMLESS_NAME.search(name)


def scrub_text(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets`, keys, passwords in addresses, and the name of the user's home."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        for form in {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}:
            text = text.replace(form, GONE)
    if len(text) > LONGEST:
        text = "\n".join(map(_cut, text.split("\n")))
    text = IN_ADDRESS.sub(f"{GONE}@", text)
    text = IN_QUERY.sub(rf"\1{GONE}", text)
    text = NETRC.sub(rf"\1{GONE}\2{GONE}", text)
    text = KEYS.sub(GONE, text)
    text = IN_HEADER.sub(rf"\1 {GONE}", text)
    text = HEADER.sub(rf"\1{GONE}", text)
    text = OF_CURL.sub(rf"\1{GONE}", text)
    text = AS_FLAG.sub(rf"\1{GONE}", text)
    text = ASSIGNED.sub(_without_value, text)
    return _without_user(text)


def scrub_values(value: Any, secrets: Collection[str] = ()) -> Any:
    """What JSON can hold, with each text in it as scrub_text() leaves it."""
    if isinstance(value, str):
        return scrub_text(value, secrets)
    if isinstance(value, dict):
        return {
            scrub_text(str(name), secrets): scrub_values(each, secrets)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub_values(each, secrets) for each in value]
    return value


def _cut(line: str) -> str:
    """The beginning of a long line, up to the end of a word: half a secret has no form."""
    if len(line) <= LONGEST:
        return line
    at = max(line.rfind(mark, LONGEST // 2, LONGEST) for mark in " \t\"',")
    return f"{line[: at + 1 if at > 0 else LONGEST]} … cut off"


def _without_value(found: re.Match[str]) -> str:
    before, name, value = found.groups()
    if name.lower() == "token" and re.fullmatch(r"[\d.]{1,12}", value):
        return found[0]  # a count, or one of a text
    if value.startswith("\\"):  # the quotation marks stay, with what escapes them
        mark = value[: value.index('"') + 1]
        return f"{before}{mark}{GONE}{mark[:-1]}"
    mark = value[0] if value[0] in "\"'" else ""
    return f"{before}{mark}{GONE}{mark}"


def _without_user(text: str) -> str:
    home, user = _home_and_user()
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![\w-])", "~", text)
    if user is not None:
        text = re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w-])", "USER", text)
        text = re.sub(rf"(?<![\w-]){re.escape(user)}(?=@)", "USER", text)
    return text


@cache
def _home_and_user() -> tuple[str, str | None]:
    home = os.path.expanduser("~").rstrip("/")
    with contextlib.suppress(OSError, KeyError, ImportError):
        user = getpass.getuser()
        if len(user) > 2 and user not in ("root", "user", "ubuntu", "nobody", "runner", "home"):
            return home, user
    return home, None


def known_secrets(environment: Mapping[str, str], home: Path | None = None) -> set[str]:
    """Values that this user's environment and files call secret."""
    home = home or Path.home()
    found = {value for name, value in environment.items() if is_secret_name(name)}
    for value in environment.values():  # http://user:password@proxy
        for pair in re.findall(r"://([^/\s@]+)@", value):
            found |= set(pair.split(":")[1:] or [pair])

    def named(variable: str, default: Path) -> Path:
        said = environment.get(variable)
        return home / said[2:] if said and said.startswith("~/") else Path(said or default)

    hub = named("HF_HOME", home / ".cache/huggingface")
    for path in [
        named("HF_TOKEN_PATH", hub / "token"),
        *(hub / "token", home / ".huggingface/token", home / ".kaggle/kaggle.json"),
    ]:
        found |= set(_words(path))
    for path in (hub / "stored_tokens", home / ".aws/credentials", home / ".config/wandb/settings"):
        found |= _of_ini(path)
    found |= _of_netrc(named("NETRC", home / ".netrc"))
    return {value.strip() for value in found if len(value.strip()) >= SHORTEST}


def _words(path: Path | str) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return re.findall(r"[\w./+=-]{8,}", Path(path).read_text(encoding="utf-8"))
    return []


def _of_ini(path: Path) -> set[str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    with contextlib.suppress(OSError, ValueError, configparser.Error):
        parser.read_string(path.read_text(encoding="utf-8"))
    return {
        value
        for section in parser.values()
        for name, value in section.items()
        if is_secret_name(name) or name.endswith("key_id")
    }


def _of_netrc(path: Path) -> set[str]:
    try:
        hosts = netrc.netrc(str(path)).hosts.values()
    except (OSError, netrc.NetrcParseError, ValueError):
        return set(re.findall(r"(?i)password\s+(\S+)", " ".join(_lines(path))))
    return {password for _, _, password in hosts if password}


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8").splitlines()
    return []
