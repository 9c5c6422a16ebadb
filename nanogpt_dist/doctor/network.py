"""How this machine finds others: its name, interfaces, a port, proxies, certificates."""

import os
import queue
import shlex
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from nanogpt_dist.doctor.check import Check
from nanogpt_dist.doctor.machine import Machine, is_rank
from nanogpt_dist.errors import Exit

RESOLVE_S = 3.0
PROXY_S = 3.0  # for all of them
PROXY_PORTS = {"https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}
PORT = 29500  # torchrun's own, and that of our pages
LOCAL = ("localhost", "127.0.0.1")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def check_network(machine: Machine) -> Iterator[Check]:
    """The host's name, interfaces, the port where ranks meet, proxies, certificates."""
    names = [name for _, name in socket.if_nameindex()]
    yield _check_host_name(machine, names)
    yield from _check_interfaces(machine, names)
    yield from _check_port(machine)
    yield from _check_proxies(machine)
    yield from _check_certificates(machine)


def _check_host_name(machine: Machine, names: list[str]) -> Check:
    """gloo and torchrun's rendezvous look their own machine's name up."""
    host = socket.gethostname()
    outward = next((name for name in names if _leads_out(machine, name)), None)
    todo = f"export GLOO_SOCKET_IFNAME={outward or 'lo'} NCCL_SOCKET_IFNAME={outward or 'lo'}"
    addresses = _resolve(host)
    named = "GLOO_SOCKET_IFNAME" in machine.environment
    if addresses is None:
        text = f"the name of this machine, {host}, is looked up for more than {RESOLVE_S:g} s"
        return Check("host name", "warning", text, "cat /etc/resolv.conf")
    if not addresses:
        text = f"the name of this machine, {host}, does not resolve"
        add = f"echo '127.0.0.1 {host}' | sudo tee -a /etc/hosts"
        return Check("host name", "ok" if named else "warning", text, "" if named else add)
    text = f"{host} is {addresses[0]}"
    if all(address.startswith(("127.", "::1")) for address in addresses) and not named:
        text += ", where other machines do not reach it"
        if machine.nodes > 1:
            return Check("host name", "warning", text, todo)
    return Check("host name", "ok", text)


def _resolve(host: str) -> list[str] | None:
    """Addresses of `host`, none where it does not resolve; None: no answer in time."""
    answer: queue.Queue[list[str]] = queue.Queue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        answer.put(sorted({str(each[4][0]) for each in found}, key=lambda name: ":" in name))

    threading.Thread(target=ask, daemon=True).start()
    with suppress(queue.Empty):
        return answer.get(timeout=RESOLVE_S)
    return None


def _leads_out(machine: Machine, name: str) -> bool:
    """Whether an interface is up, and not the loopback nor a container's bridge."""
    state = machine.read(f"sys/class/net/{name}/operstate")
    return state == "up" and not name.startswith(("lo", "docker", "veth", "br-", "virbr"))


def _check_interfaces(machine: Machine, names: list[str]) -> Iterator[Check]:
    well = True
    first = next((name for name in names if _leads_out(machine, name)), names[-1])
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        said = machine.environment.get(variable)
        if not said:
            continue
        chosen = _chosen(said, names, exact=not variable.startswith("NCCL"))
        down = [
            name for name in chosen if machine.read(f"sys/class/net/{name}/operstate") == "down"
        ]
        if not chosen:
            well = False
            text = f"{variable}={said[:40]} is none of {', '.join(names)[:80]}"
            yield Check("interfaces", "error", text, f"export {variable}={first}")
        elif down == chosen:
            well = False
            text = f"{variable}={said[:40]}: {', '.join(down)} is down"
            yield Check("interfaces", "error", text, f"export {variable}={first}")
    if well:
        shown = [
            _shown(machine, name) for name in names if name == "lo" or _leads_out(machine, name)
        ]
        if not (machine.root / "sys/class/net").is_dir():  # no Linux: which are up is not told
            shown = names
        yield Check("interfaces", "ok", ", ".join(shown)[:160])


def _chosen(said: str, names: list[str], exact: bool) -> list[str]:
    """Interfaces that a variable names.

    gloo's names are whole. NCCL's are beginnings, but behind =; behind ^ those to leave out.

    Source: NCCL's documentation, Environment Variables, NCCL_SOCKET_IFNAME.
    """
    wanted = [part.strip() for part in said.lstrip("^=").split(",")]
    whole = exact or said.startswith(("=", "^="))

    def matches(name: str) -> bool:
        return any(name == each if whole else name.startswith(each) for each in wanted)

    unwanted = not exact and said.startswith("^")
    return [name for name in names if matches(name) != unwanted]


def _shown(machine: Machine, name: str) -> str:
    speed = machine.read(f"sys/class/net/{name}/speed")
    known = speed.isdecimal() and int(speed) > 0
    return f"{name} at {int(speed) / 1000:g} Gbit/s" if known else name


def _check_port(machine: Machine) -> Iterator[Check]:
    """Where the ranks of several machines meet."""
    if is_rank(machine.environment):
        return
    port = machine.number("MASTER_PORT") or PORT
    holder = machine.port_holder(port)
    if holder is None:
        yield Check("port", "ok", f"{port} is free for ranks to meet")
        return
    text = f"port {port} is taken by {holder}"
    if machine.nodes == 1 and "MASTER_PORT" not in machine.environment:
        yield Check("port", "ok", f"{text}; torchrun --standalone takes another")
        return
    text += ": the ranks of several machines cannot meet there, but at another"
    look = f"ss -ltnp 'sport = :{port}'  # or --rdzv-endpoint HOST:{port + 1}"
    yield Check("port", "warning", text, look)


def _check_proxies(machine: Machine) -> Iterator[Check]:
    """Requests to the hub go through them; those to this machine must not."""
    named = {
        name: value
        for name, value in machine.environment.items()
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy") and value
    }
    if not named:
        yield Check("proxies", "ok", "none")
        return
    well = True
    past = machine.environment.get("no_proxy") or machine.environment.get("NO_PROXY") or ""
    if not all(_is_excepted(host, past) for host in LOCAL):
        well = False
        exceptions = ",".join([part for part in [past.strip(",")] if part] + list(LOCAL))
        text = f"{', '.join(sorted(named))}, and NO_PROXY does not except localhost"
        value = shlex.quote(exceptions)
        yield Check("proxies", "warning", text, f"export NO_PROXY={value} no_proxy={value}")
    places = {name: _proxy(value) for name, value in sorted(named.items())}
    wrong = _unreachable({place for place in places.values() if place is not None})
    for name, place in places.items():
        if place is None:
            well = False
            text = f"{name} is no address of a proxy, like http://HOST:PORT"
            yield Check("proxies", "error", text, f"unset {name}", Exit.HUB_UNAVAILABLE)
        elif place in wrong:
            well = False
            host, port = place
            text = (
                f"{name}: {host}:{port} does not answer ({wrong[place]}): the hub is out of reach"
            )
            yield Check("proxies", "warning", text, f"unset {name}")
    if well:
        yield Check("proxies", "ok", ", ".join(sorted(named)))


def _proxy(value: str) -> tuple[str, int] | None:
    """Host and port of a proxy, also of HOST:PORT alone, as requests and httpx read it."""
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port or PROXY_PORTS.get(parts.scheme, 80)
    except ValueError:  # a port that is no number
        return None
    return (parts.hostname, port) if parts.hostname else None


def _unreachable(places: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Those of `places` that take no connection, and why: all are asked at once."""
    answers: queue.Queue[tuple[tuple[str, int], str]] = queue.Queue()

    def ask(place: tuple[str, int]) -> None:
        try:
            socket.create_connection(place, timeout=PROXY_S).close()
        except (OSError, UnicodeError) as error:  # a name that is none
            answers.put((place, getattr(error, "strerror", None) or str(error)))
        else:
            answers.put((place, ""))

    for place in places:
        threading.Thread(target=ask, args=(place,), daemon=True).start()
    wrong = dict.fromkeys(places, "timed out")
    end = time.monotonic() + PROXY_S
    with suppress(queue.Empty):
        for _ in places:
            place, why = answers.get(timeout=max(0.0, end - time.monotonic()))
            wrong[place] = why
    return {place: why for place, why in wrong.items() if why}


def _is_excepted(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host, or all: names end with what it says, networks have a /."""
    names = [name.strip().lstrip(".") for name in no_proxy.split(",")]
    return any(
        name == "*" or host == name or host.endswith(f".{name}") or _is_in(host, name)
        for name in names
        if name
    )


def _is_in(host: str, network: str) -> bool:
    try:
        return "/" in network and ip_address(host) in ip_network(network, strict=False)
    except ValueError:  # a name
        return False


def _check_certificates(machine: Machine) -> Iterator[Check]:
    for name in CERTIFICATES:
        place = machine.environment.get(name)
        if place and not os.path.exists(place):
            text = f"{name}={place[-60:]} does not exist: each request to the hub fails"
            yield Check("certificates", "error", text, f"unset {name}", Exit.HUB_UNAVAILABLE)
